"""POST /v1/chat/completions."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladderlm.serve import answers
from ladderlm.serve.server import Batches, Events, Here
from ladderlm.serve.wire.chat import STREAMED, ChatAnswer, ChatBody
from ladderlm.serve.wire.sampling import DRAWING
from ladderlm.types import Cancel, Chat, Delta, Sampling, Usage

router = APIRouter(prefix="/v1", tags=["chat"])


@router.post("/chat/completions", responses={200: {"model": ChatAnswer, "content": STREAMED}})
async def chat_completions(body: ChatBody, request: Request, server: Here) -> Response:
    """The answer to a conversation, whole or as server-sent events."""
    name = server.models.resolve(body.model)
    conversation, sampling = await server.read(name, body.conversation), body.sampling
    deadline = time.monotonic() + server.timeout

    def start(cancel: Cancel) -> Iterator[Delta]:
        with server.models.use(name) as chat:
            drawn = own_drawing(chat, sampling) if body.drawn_by_model else sampling
            yield from chat.stream(conversation, drawn, cancel=cancel, deadline=deadline, priority=body.rank)

    if body.stream:
        batches = server.bridge.merge([start], body.rank)
        return await server.stream(request, _events(body, sampling, name, batches))
    completion = (await server.whole(request, [start], body.rank))[0]
    envelope = answers.Envelope("chat.completion", name)
    return JSONResponse(answers.chat_answer(envelope, completion, sampling.logprobs is not None))


async def _events(body: ChatBody, sampling: Sampling, name: str, batches: Batches) -> Events:
    """Who speaks, then the answer's pieces, then the usage if it was asked for."""
    envelope = answers.Envelope("chat.completion.chunk", name)
    start = list(answers.chat_start(envelope, sampling.n))
    chunked = answers.ChatChunks(envelope, sampling.logprobs is not None)
    usage = Usage()
    async with contextlib.aclosing(batches):
        async for _, batch in batches:
            chunks = [c for delta in batch if (c := chunked.of(delta))]
            usage = next((d.usage for d in reversed(batch) if d.usage), usage)
            yield start + chunks
            start = []
    yield start
    if body.include_usage:
        yield [envelope.of([], answers.usage_body([usage]))]


def own_drawing(chat: Chat, sampling: Sampling) -> Sampling:
    """`sampling` with the model's own settings for how a token is drawn, where it has some."""
    own = getattr(chat, "defaults", sampling)
    return dataclasses.replace(sampling, **{name: getattr(own, name) for name in DRAWING})
