"""/v1/responses: stateful answers, in semantic events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from ladderlm.errors import Cancelled, ContextOverflow, NotFound, UsageError
from ladderlm.serve import conversations, images, responses
from ladderlm.serve.bridge import Start
from ladderlm.serve.responses import Answering, Latest
from ladderlm.serve.routes.chat import own_drawing
from ladderlm.serve.server import Batches, Caller, Events, Here, Object, Server, ability
from ladderlm.serve.wire.chat import STREAMED
from ladderlm.serve.wire.responses import (
    CompactBody,
    Compacted,
    Deleted,
    InputBody,
    InputTokens,
    ItemList,
    ReadBody,
    ResponseAnswer,
    ResponseBody,
)
from ladderlm.talk.images import Blob
from ladderlm.talk.summary import summarise
from ladderlm.types import Cancel, Conversation, Delta, Sampling, Tool

router = APIRouter(prefix="/v1/responses", tags=["responses"])
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(max_length=100)]
_log = logging.getLogger(__name__)


@router.post("", responses={200: {"model": ResponseAnswer, "content": STREAMED}})
async def create_response(body: ResponseBody, request: Request, server: Here, who: Caller) -> Response:
    """An answer to items, and to what a stored response holds; whole, streamed, or made in the background."""
    owner, sampling = who.user, body.sampling
    name = server.models.resolve(body.model)
    latest: Latest | None = getattr(request.state, "latest", None)  # of a connection
    known = {} if latest is None else latest.known
    read = await _read(server, name, body, owner, body.instructions, body.offer[0], known)
    start = _start(server, name, read.talk, sampling, body) if _to_read(read.talk) else _nothing
    answering = Answering(body, name)

    async def keep() -> None:
        if read.conversation is not None and answering.whole["status"] in ("completed", "incomplete"):
            added = [*read.items, *answering.whole["output"]]
            with contextlib.suppress(NotFound):  # it was deleted meanwhile
                await server.bridge.call(partial(conversations.append, owner, read.conversation, added))
        if latest is not None:
            latest.remember(answering.whole["id"], [*read.said, *answering.whole["output"]])
        if body.kept:
            await server.bridge.call(partial(responses.keep, owner, answering.whole, read.items))

    batches = server.bridge.merge([start], body.rank)
    if body.stream:
        return await server.stream(request, _events(answering, batches, keep))
    if body.background:
        with contextlib.ExitStack() as held:  # counted in from now on: the server does not end before it, if it can
            held.enter_context(server.bridge.admitted())
            await keep()
            work = _in_background(server, answering, batches, keep, held.pop_all(), images.held())
            server.background[answering.whole["id"]] = asyncio.create_task(work)
        return JSONResponse(answering.whole)
    found = await server.deltas(request, [start], body.rank)
    answering.begin()
    for delta in found.get(0, ()):
        answering.add(delta)
    answering.end()
    await keep()
    return JSONResponse(answering.whole)


@router.post("/input_tokens", responses={200: {"model": InputTokens}})
async def input_tokens(body: InputBody, server: Here, who: Caller) -> Response:
    """How many tokens the model would read."""
    name = server.models.resolve(body.model)
    read = await _read(server, name, body, who.user, body.instructions, body.offer[0])

    def work() -> int:
        with server.models.use(name) as chat:
            return int(ability(chat, "count", name)(read.talk))

    return JSONResponse({"object": "response.input_tokens", "input_tokens": await server.call(work)})


@router.post("/compact", responses={200: {"model": Compacted}})
async def compact(body: CompactBody, request: Request, server: Here, who: Caller) -> Response:
    """What was said, told in short by the model: one item, to be sent in its place."""
    name = server.models.resolve(body.model)
    read = await _read(server, name, body, who.user, None)
    deadline = time.monotonic() + server.timeout

    def run(cancel: Cancel) -> Iterator[Delta]:
        with server.models.use(name) as chat:
            yield from summarise(chat, read.talk, cancel=cancel, deadline=deadline, priority=body.rank)

    found = await server.whole(request, [run], body.rank)
    return JSONResponse(responses.compacted(found[0]))


@router.get("/{id}", responses={200: {"model": ResponseAnswer}})
async def response(id: str, server: Here, who: Caller) -> Response:
    """A stored response."""
    body, _ = await server.call(partial(responses.find, who.user, id))
    return JSONResponse(_as_it_is(server, body))


@router.delete("/{id}", responses={200: {"model": Deleted}})
async def delete_response(id: str, server: Here, who: Caller) -> Response:
    """Forgets a response; one that is being made is cancelled."""
    await server.call(partial(responses.find, who.user, id))
    if task := server.background.pop(id, None):
        task.cancel()
    await server.call(partial(responses.forget, who.user, id))
    return JSONResponse({"id": id, "object": "response.deleted", "deleted": True})


@router.post("/{id}/cancel", responses={200: {"model": ResponseAnswer}})
async def cancel_response(id: str, server: Here, who: Caller) -> Response:
    """Ends a response that is made in the background."""
    body, items = await server.call(partial(responses.find, who.user, id))
    if not body["background"]:
        raise UsageError("only what runs in the background can be cancelled", where="response", cure="close the stream")
    task = server.background.pop(id, None)
    if task is not None and not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        body = {**body, "status": "cancelled"}
        await server.call(partial(responses.keep, who.user, body, items))
    return JSONResponse(_as_it_is(server, body))


@router.get("/{id}/input_items", responses={200: {"model": ItemList}})
async def input_items(
    id: str, server: Here, who: Caller, limit: Limit = 20, order: Order = "desc", after: After = None
) -> Response:
    """What a stored response answered."""
    _, items = await server.call(partial(responses.find, who.user, id))
    return JSONResponse(page_of(items if order == "asc" else items[::-1], limit, after))


def page_of(items: list[Object], limit: int, after: str | None) -> Object:
    """Some of a list, after the one whose id is given. Raises UsageError where there is none such."""
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise UsageError(f"no item {after!r}", where="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(items) > limit}


# --- How it is made -----------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """The new items; these after all that was said before; what the model reads."""

    items: list[Object]
    said: list[Object]
    talk: Conversation
    conversation: str | None  # that it belongs to


async def _read(
    server: Server,
    name: str,
    body: ReadBody,
    owner: str,
    instructions: str | None,
    tools: tuple[Tool, ...] = (),
    known: Mapping[str, list[Object]] = MappingProxyType({}),
) -> _Read:
    """`known`: what was said up to responses that need not be stored, by their ids."""
    items, before = await server.read(name, body.items), body.previous_response_id
    belongs = body.conversation_id if isinstance(body, InputBody) else None
    stored = before is not None or belongs is not None
    if any(item["type"] == "item_reference" for item in items):
        stored, items = True, await server.call(partial(responses.referred, owner, items))
    items = responses.named(items)
    where, said = "input", items
    if before is not None:
        where = "previous_response_id"
        earlier = known.get(before)
        if earlier is None:
            earlier = await server.call(partial(responses.before, owner, before))
        said = [*earlier, *items]
    elif belongs is not None:
        where = "conversation"
        said = [*await server.call(partial(conversations.items, owner, belongs)), *items]
    silent = isinstance(body, ResponseBody) and body.generate is False
    talk = responses.conversation(said, instructions, tools, answered=not silent)
    if stored:
        talk = images.again(talk, sees=server.models.sees(name), where=where)
    return _Read(items, said, talk, belongs)


def _to_read(talk: Conversation) -> bool:
    """Whether a chat's template has what it begins with. What is not to be answered may lack it."""
    return any(message.role != "system" for message in talk.messages)


def _nothing(cancel: Cancel) -> Iterator[Delta]:
    return iter(())


def _start(server: Server, name: str, talk: Conversation, sampling: Sampling, body: ResponseBody) -> Start:
    deadline = time.monotonic() + server.timeout

    def run(cancel: Cancel) -> Iterator[Delta]:
        with server.models.use(name) as chat:
            drawn = own_drawing(chat, sampling) if body.drawn_by_model else sampling
            shorter = responses.shortened(talk) if body.truncation == "auto" else iter(())
            read: Conversation | None = talk
            while read is not None:
                stream = chat.stream(read, drawn, cancel=cancel, deadline=deadline, priority=body.rank)
                try:
                    first = next(stream, None)
                except ContextOverflow:
                    read = next(shorter, None)
                    if read is None:
                        raise
                    continue
                if first is not None:
                    yield first
                yield from stream
                return

    return run


async def _events(answering: Answering, batches: Batches, keep: Callable[[], Awaitable[None]]) -> Events:
    """The events, the first only when the model has begun, so that what is refused is told by the status."""
    began = False
    async with contextlib.aclosing(batches):
        try:
            async for _, batch in batches:
                events = [] if began else answering.begin()
                began = True
                yield [*events, *(event for delta in batch for event in answering.add(delta))]
        except Exception as error:
            if not began or isinstance(error, Cancelled):
                raise
            yield answering.fail(error)
            await keep()
            return
    events = [] if began else answering.begin()
    events += answering.end()
    await keep()
    yield events


async def _in_background(
    server: Server,
    answering: Answering,
    batches: Batches,
    keep: Callable[[], Awaitable[None]],
    held: contextlib.ExitStack,
    shown: Sequence[Blob],
) -> None:
    """Makes the answer and keeps it, however it ends; then lets go of what is `held`.

    `shown` are its images, which the request that asked for it lets go before.
    """
    with held:
        try:
            async with contextlib.aclosing(batches):
                answering.begin()
                async for _, batch in batches:
                    for delta in batch:
                        answering.add(delta)
            answering.end()
        except Exception as error:
            answering.fail(error)
        try:
            await keep()
        except Exception:
            _log.exception("a response could not be kept")
        finally:
            server.background.pop(answering.whole["id"], None)


def _as_it_is(server: Server, body: Object) -> Object:
    """A response in the background that nobody works on any more has failed."""
    if not responses.unfinished(body):
        return body
    return {**body, "status": "in_progress"} if body["id"] in server.background else responses.orphaned(body)
