"""What every request passes: whose site it comes from, the key, and the headers every answer carries."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from ladderlm.errors import Forbidden, LadderError, outcome
from ladderlm.serve import trail
from ladderlm.serve.accounts import EVERYBODY, Accounts, Who
from ladderlm.serve.answers import error_body
from ladderlm.serve.quotas import OverQuota, Quotas

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page is our own files only: no inline script or style, no other site, no markup made from strings
# (the one policy of trusted types gives the address of the page's own worker). Images are its own, or in the address
# itself, as those in a chat are: none is loaded from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
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

READING = ("GET", "HEAD", "OPTIONS")
UPLOADS = ("/v1/files",)
SHOWING = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/chats")  # what is under these may hold images
INSIDE = "ladderlm.inside"  # in a scope that this server made itself: whom it asks for
# What a key must be allowed. Administration is checked again by the routes, which also know whose objects they are.
NEEDS = (
    ("/v1/chat", "chat"), ("/v1/completions", "chat"), ("/v1/responses", "chat"), ("/v1/messages", "chat"),
    ("/v1/next", "chat"), ("/tokenize", "chat"), ("/detokenize", "chat"), ("/v1/embeddings", "embed"),
    ("/v1/files", "files"), ("/v1/batches", "files"), ("/v1/fine_tuning", "train"), ("/v1/users", "admin"),
    ("/v1/audit", "admin"), ("/v1/chats", "chat"), ("/v1/presets", "chat"), ("/v1/votes", "chat"),
    ("/v1/runs", "train"), ("/v1/conversations", "chat"),
)  # fmt: skip


class Door:
    """ASGI middleware.

    `hosts`: the names this server answers to; a page elsewhere that rebinds its own name to this address is refused.
    None answers to any name. A page of another origin is always refused. But for `public` paths every path needs a key
    where `accounts` wants one; who calls is then in scope["state"]["who"]. A body of more than `body_limit` bytes is
    refused, of more than `image_limit` where it may hold images, of more than `upload_limit` where files are uploaded.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] | None = None,
        accounts: Accounts | None = None,
        quotas: Quotas | None = None,
        public: Iterable[str] = (),
        body_limit: int = 4 * 2**20,
        image_limit: int = 32 * 2**20,
        upload_limit: int = 512 * 2**20,
    ) -> None:
        self._app, self._body_limit, self._upload_limit = app, body_limit, upload_limit
        self._image_limit = max(body_limit, image_limit)
        self._hosts = None if hosts is None else frozenset(hosts)
        self._accounts, self._quotas = accounts or Accounts(), quotas or Quotas()
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["type"] == "websocket":
            await self._connect(headers, scope, receive, send)
            return
        extra = list(HEADERS)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", [])  # a route may set one of these itself
                message["headers"] = [*own, *(pair for pair in extra if pair[0] not in {name for name, _ in own})]
            await send(message)

        try:
            if INSIDE not in scope:
                self._check_site(headers)
            free = scope["path"] in self._public or scope["method"] == "TRACE"  # no route has TRACE: 405 for everybody
            who = scope[INSIDE] if INSIDE in scope else EVERYBODY if free else self._who(headers)
            if not free:
                _check_scope(scope["path"], who)
                if INSIDE in scope or scope["method"] not in READING:
                    left = self._quotas.admit(who)
                    extra += [(name.encode(), value.encode()) for name, value in left.items()]
                scope.setdefault("state", {})["who"] = who
                if (request := trail.current()) is not None:
                    request.who, request.entered = who, True
        except LadderError as error:
            await _refuse(answer, scope["path"], error)
            return
        await self._app(scope, self._counted(receive, scope), answer)

    async def _connect(self, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Only who may call is connected; what is then asked for passes here by itself."""

        async def answer(message: Message) -> None:
            if "websocket.http.response" in scope.get("extensions", {}):
                await send({**message, "type": "websocket." + message["type"]})
            elif message["type"] == "http.response.start":
                await send({"type": "websocket.close", "code": 1008})

        try:
            self._check_site(headers)
            _check_scope(scope["path"], self._who(headers))
        except LadderError as error:
            await _refuse(answer, scope["path"], error)
            return
        await self._app(scope, receive, send)

    def _counted(self, receive: Receive, scope: Scope) -> Receive:
        upload = scope["method"] == "POST" and scope["path"] in UPLOADS
        shows = any(scope["path"] == path or scope["path"].startswith(path + "/") for path in SHOWING)
        limit, read = self._upload_limit if upload else self._image_limit if shows else self._body_limit, 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        return counted

    def _check_site(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            cure = "open it as http://127.0.0.1"
            raise Forbidden("this server does not answer to that name", where=f"Host: {host}", cure=cure)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Forbidden("pages of other sites may not call this server", where=f"Origin: {origin}")

    def _who(self, headers: dict[str, str]) -> Who:
        """Whose request this is."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._accounts.who(_text(given.strip()))
        if scheme:
            return self._accounts.who("")
        key = headers.get("x-api-key")
        return self._accounts.who(None if key is None else _text(key.strip()))


def _check_scope(path: str, who: Who) -> None:
    """A key that lacks the path's scope is refused. What is under no scope needs only some key."""
    for prefix, scope in NEEDS:
        if (path == prefix or path.startswith(prefix + "/")) and scope not in who.scopes:
            raise Forbidden(f"this key lacks the scope {scope!r}", where=prefix, cure="use another key")


def _text(given: str) -> str:
    """A header's value as it was meant: in UTF-8."""
    return given.encode("latin-1").decode("utf-8", "surrogateescape")


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


async def _refuse(send: Send, path: str, error: LadderError) -> None:
    body: dict[str, Any] = error_body(error)
    status, headers = outcome(error).http_status, [(b"content-type", b"application/json")]
    if isinstance(error, OverQuota):
        body["error"] |= {"type": error.code if error.code == "insufficient_quota" else "requests", "code": error.code}
        wait = (b"retry-after", str(math.ceil(error.wait)).encode()), (b"retry-after-ms", b"%d" % (error.wait * 1000))
        headers += [*wait, *((name.encode(), value.encode()) for name, value in error.headers.items())]
    elif status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if path.startswith("/v1/messages"):  # Anthropic's clients look for this
        body = {"type": "error", **body}
    data = json.dumps(body).encode()
    headers.append((b"content-length", str(len(data)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
