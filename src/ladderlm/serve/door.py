"""What every request passes: whose site it comes from, the key, and the headers every answer carries."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from ladderlm.errors import AuthError, LadderError
from ladderlm.serve.answers import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page is our own files only: no inline script or style, no other site, no markup made from strings
# (the one policy of trusted types gives the address of the page's own worker).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types worker"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class Door:
    """ASGI middleware.

    `hosts`: the names this server answers to; a page elsewhere that rebinds its own name to this address is refused.
    None answers to any name. `key` guards everything under /v1. A page of another origin is always refused. A body of
    more than `body_limit` bytes is too.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str] | None = None, key: str | None = None, body_limit: int = 4 * 2**20
    ) -> None:
        self._app, self._body_limit = app, body_limit
        self._hosts = None if hosts is None else frozenset(hosts)
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])  # a route may set one of these itself
                message["headers"] = [*own, *(pair for pair in HEADERS if pair[0] not in {name for name, _ in own})]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["path"], headers)
        if refused is not None:
            await _refuse(answer, *refused)
        else:
            await self._app(scope, self._counted(receive), answer)

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_limit:
                raise HTTPException(413, f"the body is larger than {self._body_limit} bytes")
            return message

        return counted

    def _refused(self, path: str, headers: dict[str, str]) -> tuple[int, LadderError] | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            cure = "open it as http://127.0.0.1"
            return 403, LadderError("this server does not answer to that name", where=f"Host: {host}", cure=cure)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, LadderError("pages of other sites may not call this server", where=f"Origin: {origin}")
        if self._key is not None and path.startswith("/v1"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
                return 401, AuthError("a key is missing or wrong", where="Authorization", cure="send: Bearer KEY")
        return None


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, error: LadderError) -> None:
    body: dict[str, Any] = error_body(error)
    if status == 403:
        body["error"]["type"] = "permission_error"
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
