"""POST /v1/messages and /v1/messages/count_tokens, for clients of Anthropic's API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladderlm.errors import Cancelled
from ladderlm.serve.messages import Messaging
from ladderlm.serve.routes.chat import own_drawing
from ladderlm.serve.server import Batches, Events, Here, ability
from ladderlm.serve.wire.chat import STREAMED
from ladderlm.serve.wire.messages import CountBody, MessageAnswer, MessagesBody, MessagesError, TokenCount
from ladderlm.types import Cancel, Delta

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": MessagesError, "description": "what is wrong with the request"},
    "5XX": {"model": MessagesError, "description": "what went wrong here"},
}
router = APIRouter(prefix="/v1/messages", tags=["messages"], responses=REFUSALS)


@router.post("", responses={200: {"model": MessageAnswer, "content": STREAMED}})
async def create_message(body: MessagesBody, request: Request, server: Here) -> Response:
    """The answer to a conversation in content blocks, whole or as server-sent events."""
    name = server.models.resolve(body.model)
    conversation, sampling = await server.read(name, body.conversation), body.sampling
    deadline = time.monotonic() + server.timeout

    def start(cancel: Cancel) -> Iterator[Delta]:
        with server.models.use(name) as chat:
            drawn = own_drawing(chat, sampling) if body.drawn_by_model else sampling
            yield from chat.stream(conversation, drawn, cancel=cancel, deadline=deadline)

    messaging = Messaging(name)
    if body.stream:
        return await server.stream(request, _events(messaging, server.bridge.merge([start])), last=b"")
    for delta in (await server.deltas(request, [start])).get(0, ()):
        messaging.add(delta)
    messaging.end()
    return JSONResponse(messaging.whole)


@router.post("/count_tokens", responses={200: {"model": TokenCount}})
async def count_tokens(body: CountBody, server: Here) -> Response:
    """How many tokens the model would read."""
    name = server.models.resolve(body.model)
    conversation = await server.read(name, body.conversation)

    def work() -> int:
        with server.models.use(name) as chat:
            return int(ability(chat, "count", name)(conversation))

    return JSONResponse({"input_tokens": await server.call(work)})


async def _events(messaging: Messaging, batches: Batches) -> Events:
    """The events, the first only when the model has begun, so that what is refused is told by the status."""
    began = False
    async with contextlib.aclosing(batches):
        try:
            async for _, batch in batches:
                events = [] if began else messaging.begin()
                began = True
                yield [*events, *(event for delta in batch for event in messaging.add(delta))]
        except Exception as error:
            if not began or isinstance(error, Cancelled):
                raise
            yield messaging.fail(error)
            return
    yield [*([] if began else messaging.begin()), *messaging.end()]
