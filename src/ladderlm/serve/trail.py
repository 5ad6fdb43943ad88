"""What is known of the request that is being answered, from its first byte to its last: id, who asks, model, tokens,
times, outcome.

The handlers, the bridge and the log all find it by `current`; the middleware `Trails` makes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ladderlm.errors import UsageError
from ladderlm.serve.accounts import EVERYBODY, Who
from ladderlm.serve.answers import error_body
from ladderlm.talk.images import Blob
from ladderlm.types import Usage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ladderlm.serve.meter import Meter

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SEEN = 2**20  # bytes of a body that the log and a tracer may look at, when its images are out
_READ = 32 * 2**20  # bytes of a body that are kept until then
_UNSEEN = ("/v1/files", "/v1/keys")  # whose bodies nobody looks at
TIMEOUT_HEADER = "x-request-timeout"

access = logging.getLogger("ladderlm.serve.access")
_failures = logging.getLogger("ladderlm.serve")


@dataclass(slots=True)
class Trail:
    """One request. `meters` are its streams, `spent` what it took outside of them; `model` is set when a handler
    resolves its name, `who` and `entered` when the door lets it in, `route`, `status` and `seconds` when it has
    ended."""

    id: str
    method: str = ""
    path: str = ""
    who: Who = EVERYBODY
    entered: bool = False
    asked: str | None = None  # the deadline it asks for, as it was written
    parent: dict[str, str] = field(default_factory=dict)  # the caller's trace context
    model: str = ""
    route: str = ""
    status: int = 0
    seconds: float = 0.0
    spent: Usage = field(default_factory=Usage)
    at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    meters: list[Meter] = field(default_factory=list)
    body: bytearray | None = None  # the request's, where the log or a tracer wants it
    held: list[Blob] = field(default_factory=list)  # images, in memory as long as they are in this list

    @property
    def usage(self) -> Usage:
        """Of all streams and what was spent beside them; of one that was broken off, what it had written."""
        told = [*(m.usage for m in self.meters), self.spent]
        written = sum(max(m.written, m.usage.completion_tokens) for m in self.meters)
        costs = [u.cost for u in told if u.cost is not None]
        return Usage(
            sum(u.prompt_tokens for u in told),
            written + self.spent.completion_tokens,
            sum(u.cached_tokens for u in told),
            sum(costs) if costs else None,
        )

    @property
    def timeout(self) -> float:
        """Seconds the caller gives it. Raises UsageError."""
        if self.asked is None:
            return math.inf
        with contextlib.suppress(ValueError):
            seconds = float(self.asked)
            if 0 < seconds < math.inf:
                return seconds
        raise UsageError("must be seconds above 0", where=TIMEOUT_HEADER)

    @property
    def json(self) -> dict[str, Any]:
        """The request's body, where it was kept and is an object."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.body or b"{}")
            return found if isinstance(found, dict) else {}
        return {}


_current: ContextVar[Trail | None] = ContextVar("trail", default=None)
Ended = Callable[[Trail], None]
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def current() -> Trail | None:
    """The request that this task answers; None outside of one."""
    return _current.get()


def spend(usage: Usage) -> None:
    """Tells the request what was read and written outside of a stream."""
    if (request := _current.get()) is not None:
        request.spent = usage


class Trails:
    """ASGI middleware: gives every request an id (the caller's, if it sends a fit one) and tells how it ended.

    `ended` is called after the last byte. `body`: keep what the caller sent, for the log and for traces.
    """

    def __init__(self, app: ASGIApp, *, ended: Ended, body: bool = False) -> None:
        self._app, self._ended, self._body = app, ended, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self._app if scope["type"] == "lifespan" else self._connect)(scope, receive, send)
            return
        trail = _begin(scope)
        if self._body and not trail.path.startswith(_UNSEEN):
            trail.body = bytearray()
            receive = _kept(receive, trail.body)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                trail.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", trail.id.encode())]
            await send(message)

        token = _current.set(trail)
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            _failures.exception("a request failed")
            if not trail.status:
                await _apologise(answer, error)
        finally:
            _current.reset(token)
            trail.held.clear()
            if trail.body is not None:
                trail.body = _without_images(trail.body)[:_SEEN]
            self._end(trail, scope)

    def _end(self, trail: Trail, scope: Scope) -> None:
        trail.seconds = time.monotonic() - trail.began
        trail.route = getattr(scope.get("route"), "path", "none")
        self._ended(trail)
        _log(trail)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket that is refused is a request that failed. What is asked for over others passes here by itself."""
        trail = _begin({**scope, "method": "GET"})

        async def answer(message: Message) -> None:
            if message["type"] == "websocket.http.response.start":
                trail.status = message["status"]
            await send(message)

        await self._app(scope, receive, answer)
        if trail.status:
            self._end(trail, scope)


async def _apologise(send: Send, error: Exception) -> None:
    """What nobody foresaw: the client learns nothing of it but the request's id."""
    data = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _begin(scope: Scope) -> Trail:
    headers = dict(scope["headers"])
    given = headers.get(b"x-request-id", b"")
    id = given.decode() if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
    asked = headers.get(TIMEOUT_HEADER.encode())
    parent = {n.decode(): headers[n].decode("latin-1") for n in (b"traceparent", b"tracestate") if n in headers}
    method = scope["method"] if scope["method"] in _METHODS else "OTHER"
    return Trail(id, method, scope["path"], asked=None if asked is None else asked.decode("latin-1"), parent=parent)


def _kept(receive: Receive, into: bytearray) -> Receive:
    async def kept() -> Message:
        message = await receive()
        if len(into) < _READ:
            into.extend(message.get("body", b"")[:_READ])
        return message

    return kept


def _without_images(body: bytearray) -> bytearray:
    """What was sent with the size of each image in the place of its bytes; of what is no JSON, what stands before."""
    if (at := body.find(b"base64")) < 0:
        return body
    try:
        return bytearray(json.dumps(_named(json.loads(body)), ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return body[:at]


def _named(value: Any) -> Any:
    """`value` with data: URLs, and the data of objects whose type is base64, cut to what they are."""
    if isinstance(value, dict):
        raw = value.get("type") == "base64"
        return {k: f"({len(v)} characters)" if raw and k == "data" and isinstance(v, str) else _named(v)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_named(v) for v in value]
    if isinstance(value, str) and value[:5].lower() == "data:" and (head := value.partition(",")[0]) != value:
        return f"{head[:100]}, ({len(value)} characters)"
    return value


def _log(trail: Trail) -> None:
    """One line per request; never its content."""
    if not access.isEnabledFor(logging.INFO):
        return
    told: dict[str, Any] = {
        "request_id": trail.id, "method": trail.method, "path": trail.path, "status": trail.status or 499,
        "seconds": round(trail.seconds, 4),
    }  # fmt: skip
    if trail.model:
        told["model"] = trail.model
    if meters := trail.meters:
        told |= {
            "prompt_tokens": trail.usage.prompt_tokens,
            "completion_tokens": trail.usage.completion_tokens,
            "finish_reason": meters[0].reason,
        }
        if (first := meters[0].to_first) is not None:
            told["seconds_to_first_token"] = round(first, 4)
    access.info("request", extra={"fields": told})
