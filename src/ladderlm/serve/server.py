"""What the routes share: the server they belong to, and how a handler reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request, Response

from ladderlm.errors import Cancelled, DeadlineExceeded, LadderError, NotFound, UsageError
from ladderlm.serve import answers, trail
from ladderlm.serve.accounts import EVERYBODY, Accounts, Who
from ladderlm.serve.batches import Batches as BatchRunner
from ladderlm.serve.bridge import Bridge, Start
from ladderlm.serve.images import Images, wanted
from ladderlm.serve.log import RequestLog
from ladderlm.serve.models import Models
from ladderlm.serve.trainer import Trainer
from ladderlm.serve.wire.base import See, blind
from ladderlm.types import Chat, Completion, Delta

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from ladderlm.serve.metrics import Metrics

T = TypeVar("T")
Object = dict[str, Any]
Events = AsyncGenerator[list[Object], None]
Batches = AsyncGenerator[tuple[int, list[Delta]], None]

GRACE = 0.5  # seconds after a deadline in which a chat tells of it itself
SEND_TIMEOUT = 60.0  # seconds that a client may take nothing before it counts as gone
DONE = b"data: [DONE]\n\n"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Server:
    """The models on offer and what runs them. `longest`: the seconds that any generation may take."""

    models: Models
    bridge: Bridge
    longest: float
    metrics: Metrics
    log: RequestLog = field(default_factory=RequestLog)
    batches: BatchRunner = field(default_factory=lambda: BatchRunner(Accounts()))
    trainer: Trainer = field(default_factory=Trainer)
    images: Images = field(default_factory=Images)
    background: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # responses that nobody waits for, by id

    @property
    def timeout(self) -> float:
        """Seconds that the request which is being answered has: as many as it asks for, at most `longest`."""
        request = trail.current()
        return self.longest if request is None else min(self.longest, request.timeout)

    async def read(self, name: str, build: Callable[[See], T]) -> T:
        """What `build(see)` makes of a request to the model `name`, whose images are taken in and held until it ends.

        UsageError, before anything runs, where that model reads text only.
        """
        built, images = wanted(build)
        if not images:
            return built
        if not self.models.sees(name):
            return build(blind)
        with self.bridge.admitted():
            async with self._in_time():
                return build(await self.images.take(images))

    async def whole(self, request: Request, starts: Sequence[Start], rank: int = 0) -> dict[int, Completion]:
        """Every stream folded; all of them end when the client goes away."""
        found = await self.deltas(request, starts, rank)
        return defaultdict(Completion, {number: Completion.fold(deltas) for number, deltas in found.items()})

    async def deltas(self, request: Request, starts: Sequence[Start], rank: int = 0) -> dict[int, list[Delta]]:
        """All that every stream says."""

        async def gather() -> dict[int, list[Delta]]:
            deltas: defaultdict[int, list[Delta]] = defaultdict(list)
            async with contextlib.aclosing(self.bridge.merge(starts, rank)) as batches:
                async for number, batch in batches:
                    deltas[number] += batch
            return deltas

        with self.bridge.admitted():
            async with self._in_time():
                return await _unless_gone(request.receive, gather())

    async def stream(self, request: Request, events: Events, last: bytes = DONE) -> Response:
        """The events as they come, then `last`. An error before the first one still sets the status."""
        admitted = self.bridge.admitted()
        admitted.__enter__()
        try:
            async with self._in_time():
                first = await _unless_gone(request.receive, events.asend(None))
        except BaseException:
            admitted.__exit__(None, None, None)
            await events.aclose()
            raise
        return _EventStream(first, events, lambda: admitted.__exit__(None, None, None), last)

    async def call(self, work: Callable[[], T], rank: int = 0) -> T:
        """The result of blocking `work`, counted as one request."""
        with self.bridge.admitted():
            async with self._in_time():
                return await self.bridge.call(work, rank)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """The chats look at their deadlines themselves, once they are begun: this is for those who wait."""
        try:
            async with asyncio.timeout(self.timeout + GRACE):
                yield
        except TimeoutError as error:
            if isinstance(error, LadderError):
                raise
            raise DeadlineExceeded("the deadline passed", where="in the queue", cure="ask for more time") from None


# What handlers ask for by parameter is found by async functions: others would be run in a thread, and behind many
# streams each way to a thread and back is long.


async def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


async def _who(request: Request) -> Who:
    who: Who = getattr(request.state, "who", EVERYBODY)
    return who


async def _admin(request: Request) -> Who:
    who = await _who(request)
    if not who.admin:
        raise NotFound("not found", where=request.url.path)
    return who


Here = Annotated[Server, Depends(_server)]
Caller = Annotated[Who, Depends(_who)]  # whose request it is
Admin = Annotated[Who, Depends(_admin)]  # the same; for all others the route is not there


def ability(chat: Chat, verb: str, name: str) -> Callable[..., Any]:
    """`complete` and `next` need a model that reads raw text; not every Chat does."""
    method: Callable[..., Any] | None = getattr(chat, verb, None)
    if method is None:
        raise UsageError(f"{name!r} only chats", where="model", cure="use /v1/chat/completions")
    return method


class _EventStream(Response):
    """A server-sent event stream that stops its source when the client goes away."""

    def __init__(self, first: list[Object], events: Events, done: Callable[[], Any], last: bytes) -> None:
        super().__init__(media_type="text/event-stream")
        self._first, self._events, self._done, self._last = first, events, done, last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            with contextlib.suppress(Cancelled):
                await _unless_gone(receive, self._write(_patient(send)))
        finally:
            await self._events.aclose()
            self._done()

    async def _write(self, send: Send) -> None:
        try:
            await _send_events(send, self._first)
            async for batch in self._events:
                await _send_events(send, batch)
            last = self._last
        except _Stuck:
            raise Cancelled("the client takes nothing") from None
        except Exception as error:  # the status is out: the error travels as an event
            if not isinstance(error, LadderError):
                _log.exception("a stream failed")
            last = _event(answers.error_body(error))
        await send({"type": "http.response.body", "body": last})


class _Stuck(Exception):
    """A client that takes nothing."""


def _patient(send: Send) -> Send:
    """`send`, given up when the client has taken nothing for long."""

    async def sent(message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                await send(message)
        except TimeoutError:
            raise _Stuck from None

    return sent


async def _send_events(send: Send, batch: list[Object]) -> None:
    if batch:
        await send({"type": "http.response.body", "body": b"".join(map(_event, batch)), "more_body": True})


def _event(body: Object) -> bytes:
    """An event; one that has a type is named by it."""
    name = f"event: {body['type']}\n".encode() if "type" in body else b""
    return name + b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; Cancelled, and `work` stopped, when the client disconnects first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client went away")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
