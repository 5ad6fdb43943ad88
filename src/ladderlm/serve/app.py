"""The routes: the OpenAI API's /v1 models, chat/completions, completions and embeddings, our /v1/next, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ladderlm import __version__
from ladderlm.errors import Cancelled, LadderError, UsageError, outcome
from ladderlm.serve import answers, wire
from ladderlm.serve.bridge import Bridge, Start
from ladderlm.serve.door import Door
from ladderlm.serve.models import Models
from ladderlm.types import Cancel, Candidate, Chat, Choice, Completion, Delta, Sampling, Token, Usage

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ladderlm.engine.embed import Embedder

T = TypeVar("T")
Object = dict[str, Any]
Events = AsyncGenerator[list[Object], None]
Batches = AsyncGenerator[tuple[int, list[Delta]], None]

_log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def build_app(
    catalogue: Models,
    *,
    bridge: Bridge | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK_NAMES,
    key: str | None = None,
    body_limit: int = 4 * 2**20,
    timeout: float = 600.0,
) -> Starlette:
    """The ASGI application.

    `hosts` are the names it answers to (None: any), `key` guards /v1, `body_limit` is in bytes, `timeout` in seconds
    ends a generation.
    """
    api = _Api(catalogue, bridge or Bridge(), body_limit, timeout)
    v1 = [
        Route("/models", api.models),
        Route("/models/{name:path}", api.model),
        Route("/chat/completions", api.chat, methods=["POST"]),
        Route("/completions", api.completions, methods=["POST"]),
        Route("/embeddings", api.embeddings, methods=["POST"]),
        Route("/next", api.next, methods=["POST"]),
    ]
    page = _Page(directory=PAGE, html=True)
    routes = [Route("/health", api.health), Mount("/v1", routes=v1), Mount("/", page)]
    handlers: Any = {LadderError: _failed, HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, middleware=[Middleware(Door, hosts=hosts, key=key)], exception_handlers=handlers)


class _Api:
    """The endpoints, over the models on offer."""

    def __init__(self, models: Models, bridge: Bridge, body_limit: int, timeout: float) -> None:
        self._models, self._bridge = models, bridge
        self._body_limit, self._timeout = body_limit, timeout

    async def health(self, request: Request) -> Response:
        """200 once every named model that is being opened is open."""
        states = {name: self._models.state(name) for name in self._models.named}
        status = next((s for s in ("loading", "failed") if s in states.values()), "ready")
        body: Object = {"status": status, "version": __version__, "models": states}
        if status == "failed":
            body["error"] = next(filter(None, map(self._models.error, states)), "")
        return JSONResponse(body, 200 if status == "ready" else 503)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry(name) for name in self._models.names()]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._entry(self._models.resolve(request.path_params["name"])))

    def _entry(self, name: str) -> Object:
        state = self._models.state(name)
        return {"id": name, "object": "model", "created": 0, "owned_by": "ladderlm", "state": state}

    async def chat(self, request: Request) -> ASGIApp:
        asked = wire.chat_request(await self._body(request))
        name = self._models.resolve(asked.model)
        deadline = time.monotonic() + self._timeout

        def start(cancel: Cancel) -> Iterator[Delta]:
            with self._models.use(name) as chat:
                sampling = _own_drawing(chat, asked.sampling) if asked.drawn_by_model else asked.sampling
                yield from chat.stream(
                    asked.conversation, sampling, cancel=cancel, deadline=deadline, priority=asked.priority
                )

        batches = self._bridge.merge([start], asked.priority)
        if asked.stream:
            return await self._stream(request, _chat_events(asked, name, batches))
        completion = (await self._whole(request, batches))[0]
        envelope = answers.Envelope("chat.completion", name)
        return JSONResponse(answers.chat_answer(envelope, completion, asked.sampling.logprobs is not None))

    async def completions(self, request: Request) -> ASGIApp:
        asked = wire.completion_request(await self._body(request))
        name = self._models.resolve(asked.model)
        deadline = time.monotonic() + self._timeout

        def start(prompt: wire.Prompt) -> Start:
            def run(cancel: Cancel) -> Iterator[Delta]:
                with self._models.use(name) as chat:
                    complete = _ability(chat, "complete", name)
                    yield from complete(
                        prompt, asked.sampling, cancel=cancel, deadline=deadline, priority=asked.priority
                    )

            return run

        batches = self._bridge.merge([start(prompt) for prompt in asked.prompts], asked.priority)
        if asked.stream:
            return await self._stream(request, _completion_events(asked, name, batches))
        found = await self._whole(request, batches)
        choices = []
        for i, prompt in enumerate(asked.prompts):
            choices += _completion_choices(asked, i, prompt, found[i])
        body = answers.Envelope("text_completion", name).of(
            choices, answers.usage_body(c.usage for c in found.values())
        )
        return JSONResponse(body)

    async def embeddings(self, request: Request) -> Response:
        asked = wire.embedding_request(await self._body(request))
        name = self._models.resolve(asked.model)

        def work() -> Object:
            with self._models.use(name) as chat:
                embedder: Embedder | None = getattr(chat, "embedder", None)
                if embedder is None:
                    raise UsageError(f"{name!r} gives no vectors", where="model")
                rows = [embedder.ids(d) if isinstance(d, str) else d for d in asked.documents]
                found = embedder.embed(rows, dimensions=asked.dimensions)
                return answers.vectors_body(name, found, sum(map(len, rows)), packed=asked.base64)

        with self._bridge.admitted():
            return JSONResponse(await self._bridge.call(work))

    async def next(self, request: Request) -> Response:
        asked = wire.next_request(await self._body(request))
        name = self._models.resolve(asked.model)

        def work() -> list[Candidate]:
            with self._models.use(name) as chat:
                return list(_ability(chat, "next", name)(asked.prompt, asked.k))

        with self._bridge.admitted():
            found = await self._bridge.call(work)
        return JSONResponse({"object": "next", "model": name, "tokens": answers.table(found)})

    async def _body(self, request: Request) -> wire.Body:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > self._body_limit:
                raise HTTPException(413, f"the body is larger than {self._body_limit} bytes")
        return wire.parse_json(bytes(data))

    async def _whole(self, request: Request, batches: Batches) -> dict[int, Completion]:
        """Every stream folded; all of them end when the client goes away."""

        async def gather() -> dict[int, Completion]:
            deltas: defaultdict[int, list[Delta]] = defaultdict(list)
            async with contextlib.aclosing(batches):
                async for number, batch in batches:
                    deltas[number] += batch
            return defaultdict(Completion, {number: Completion.fold(found) for number, found in deltas.items()})

        with self._bridge.admitted():
            return await _unless_gone(request.receive, gather())

    async def _stream(self, request: Request, events: Events) -> ASGIApp:
        """The events as they come. An error before the first one still sets the status."""
        admitted = self._bridge.admitted()
        admitted.__enter__()
        try:
            first = await _unless_gone(request.receive, events.asend(None))
        except BaseException:
            admitted.__exit__(None, None, None)
            await events.aclose()
            raise
        return _EventStream(first, events, lambda: admitted.__exit__(None, None, None))


class _EventStream:
    """A server-sent event stream that stops its source when the client goes away."""

    def __init__(self, first: list[Object], events: Events, done: Callable[[], Any]) -> None:
        self._first, self._events, self._done = first, events, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            with contextlib.suppress(Cancelled):
                await _unless_gone(receive, self._write(send))
        finally:
            await self._events.aclose()
            self._done()

    async def _write(self, send: Send) -> None:
        try:
            await _send_events(send, self._first)
            async for batch in self._events:
                await _send_events(send, batch)
            last = b"data: [DONE]\n\n"
        except Exception as error:  # the status is out: the error travels as an event
            if not isinstance(error, LadderError):
                _log.exception("a stream failed")
            last = _event(answers.error_body(error))
        await send({"type": "http.response.body", "body": last})


async def _send_events(send: Send, batch: list[Object]) -> None:
    if batch:
        await send({"type": "http.response.body", "body": b"".join(map(_event, batch)), "more_body": True})


def _event(body: Object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


# --- Answers as events --------------------------------------------------------------------------------------------


async def _chat_events(asked: wire.ChatRequest, name: str, batches: Batches) -> Events:
    """Who speaks, then the answer's pieces, then the usage if it was asked for."""
    envelope = answers.Envelope("chat.completion.chunk", name)
    start = list(answers.chat_start(envelope, asked.sampling.n))
    logprobs = asked.sampling.logprobs is not None
    usage = Usage()
    async with contextlib.aclosing(batches):
        async for _, batch in batches:
            chunks = [c for delta in batch if (c := answers.chat_chunk(envelope, delta, logprobs))]
            usage = next((d.usage for d in reversed(batch) if d.usage), usage)
            yield start + chunks
            start = []
    yield start
    if asked.include_usage:
        yield [envelope.of([], answers.usage_body([usage]))]


async def _completion_events(asked: wire.CompletionRequest, name: str, batches: Batches) -> Events:
    """The pieces of every prompt's choices as they come; an echoed prompt is the first piece."""
    envelope = answers.Envelope("text_completion", name)
    n, wanted = asked.sampling.n, asked.sampling.logprobs is not None
    offsets: defaultdict[int, answers.Offsets] = defaultdict(answers.Offsets)
    usages: dict[int, Usage] = {}
    echoed: set[int] = set()
    async with contextlib.aclosing(batches):
        async for number, batch in batches:
            chunks = []
            for delta in batch:
                usages[number] = delta.usage or usages.get(number, Usage())
                if asked.echo and number not in echoed:
                    echoed.add(number)
                    text = _prompt_text(asked.prompts[number], delta.prompt)
                    tokens = _echoed(asked.prompts[number], delta.prompt)
                    chunks += [
                        answers.completion_choice(i, text, tokens, None, offsets[i] if wanted else None)
                        for i in range(number * n, number * n + n)
                    ]
                if delta.text or delta.tokens or delta.finish_reason:
                    i = number * n + delta.index
                    chunks.append(
                        answers.completion_choice(
                            i, delta.text, delta.tokens, delta.finish_reason, offsets[i] if wanted else None
                        )
                    )
            yield [envelope.of([chunk]) for chunk in chunks]
    if asked.include_usage:
        yield [envelope.of([], answers.usage_body(usages.values()))]


def _completion_choices(
    asked: wire.CompletionRequest, number: int, prompt: wire.Prompt, found: Completion
) -> list[Object]:
    """One prompt's choices, with the prompt in front when it is echoed."""
    text = _prompt_text(prompt, found.prompt) if asked.echo else ""
    before = _echoed(prompt, found.prompt) if asked.echo else ()
    return [
        answers.completion_choice(
            number * asked.sampling.n + choice.index,
            text + choice.text,
            (*before, *choice.tokens),
            choice.finish_reason or "length",
            answers.Offsets() if asked.sampling.logprobs is not None else None,
        )
        for choice in found.choices or (Choice(),)
    ]


def _own_drawing(chat: Chat, sampling: Sampling) -> Sampling:
    """`sampling` with the model's own settings for how a token is drawn, where it has some."""
    own = getattr(chat, "defaults", sampling)
    return dataclasses.replace(sampling, **{name: getattr(own, name) for name in wire.DRAWING})


def _echoed(prompt: wire.Prompt, tokens: Sequence[Token]) -> Sequence[Token]:
    """The prompt's tokens without the document-start token that the model read before the caller's text."""
    extra = isinstance(prompt, str) and sum(len(t.data) for t in tokens) > len(prompt.encode())
    return tokens[1:] if extra else tokens


def _prompt_text(prompt: wire.Prompt, tokens: Sequence[Token]) -> str:
    """The prompt as text; ids are read back from their tokens' bytes."""
    if isinstance(prompt, str):
        return prompt
    return b"".join(bytes(t.data) or t.text.encode() for t in tokens).decode("utf-8", "replace")


def _ability(chat: Chat, verb: str, name: str) -> Callable[..., Any]:
    """`complete` and `next` need a model that reads raw text; not every Chat does."""
    method: Callable[..., Any] | None = getattr(chat, verb, None)
    if method is None:
        raise UsageError(f"{name!r} only chats", where="model", cure="use /v1/chat/completions")
    return method


# --- Ends ---------------------------------------------------------------------------------------------------------


class _Page(StaticFiles):
    """The page's files; a browser asks again each time, and gets "not modified"."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


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


async def _failed(request: Request, error: Exception) -> Response:
    status = outcome(error).http_status
    headers = {"retry-after": "1"} if status == 429 else None
    return JSONResponse(answers.error_body(error), status, headers)


async def _refused(request: Request, error: HTTPException) -> Response:
    """A path or method that is not there, or a body that is too large."""
    body = answers.error_body(LadderError(error.detail, where=request.url.path))
    body["error"]["type"] = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    return JSONResponse(body, error.status_code, error.headers)
