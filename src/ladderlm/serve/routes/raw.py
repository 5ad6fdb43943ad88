"""POST /v1/completions, /v1/embeddings and our /v1/next: raw text and token ids."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ladderlm.errors import UsageError
from ladderlm.serve import answers, trail
from ladderlm.serve.bridge import Start
from ladderlm.serve.server import Batches, Events, Here, Object, ability
from ladderlm.serve.wire.chat import STREAMED
from ladderlm.serve.wire.raw import (
    CompletionAnswer,
    CompletionBody,
    EmbeddingAnswer,
    EmbeddingBody,
    NextAnswer,
    NextBody,
    Prompt,
)  # fmt: skip
from ladderlm.types import Cancel, Candidate, Chat, Choice, Completion, Delta, Sampling, Token, Usage

if TYPE_CHECKING:
    from ladderlm.engine.embed import Embedder

router = APIRouter(prefix="/v1", tags=["raw text"])


@router.post("/completions", responses={200: {"model": CompletionAnswer, "content": STREAMED}})
async def completions(body: CompletionBody, request: Request, server: Here) -> Response:
    """How text or ids go on: echo, log-probabilities of the prompt, several prompts at once."""
    name = server.models.resolve(body.model)
    sampling, prompts = body.sampling, body.prompts
    deadline = time.monotonic() + server.timeout

    def start(prompt: Prompt) -> Start:
        def run(cancel: Cancel) -> Iterator[Delta]:
            with server.models.use(name) as chat:
                complete = ability(chat, "complete", name)
                read = _between(chat, prompt, body.suffix) if body.suffix else prompt
                yield from complete(read, sampling, cancel=cancel, deadline=deadline, priority=body.rank)

        return run

    starts = [start(prompt) for prompt in prompts]
    if body.stream:
        batches = server.bridge.merge(starts, body.rank)
        return await server.stream(request, _events(body, sampling, name, batches))
    found = await server.whole(request, starts, body.rank)
    choices: list[Object] = []
    for i, prompt in enumerate(prompts):
        choices += _choices(bool(body.echo), sampling, i, prompt, found[i])
    usage = answers.usage_body(c.usage for c in found.values())
    return JSONResponse(answers.Envelope("text_completion", name).of(choices, usage))


@router.post("/embeddings", responses={200: {"model": EmbeddingAnswer}})
async def embeddings(body: EmbeddingBody, server: Here) -> Response:
    """Vectors of texts or ids."""
    name = server.models.resolve(body.model)

    def work() -> Object:
        with server.models.use(name) as chat:
            packed = body.encoding_format == "base64"
            if (embed := getattr(chat, "embed", None)) is not None:  # a server that reads by itself
                return answers.vectors_body(name, *embed(body.documents, body.dimensions), packed=packed)
            embedder: Embedder | None = getattr(chat, "embedder", None)
            if embedder is None:
                raise UsageError(f"{name!r} gives no vectors", where="model")
            rows = [embedder.ids(d) if isinstance(d, str) else d for d in body.documents]
            found = embedder.embed(rows, dimensions=body.dimensions)
            return answers.vectors_body(name, found, sum(map(len, rows)), packed=packed)

    found = await server.call(work, body.rank)
    trail.spend(Usage(found["usage"]["prompt_tokens"]))
    return JSONResponse(found)


@router.post("/next", responses={200: {"model": NextAnswer}})
async def next_tokens(body: NextBody, server: Here) -> Response:
    """The likeliest next tokens of raw text."""
    name = server.models.resolve(body.model)

    def work() -> list[Candidate]:
        with server.models.use(name) as chat:
            return list(ability(chat, "next", name)(body.prompt, body.k or 10))

    found = await server.call(work)
    return JSONResponse({"object": "next", "model": name, "tokens": answers.table(found)})


def _between(chat: Chat, prompt: Prompt, suffix: str) -> Prompt:
    between: Callable[[Prompt, str], Sequence[int]] | None = getattr(chat, "between", None)
    if between is None:
        raise UsageError("this model does not fill in the middle", where="suffix", cure="leave it out")
    return tuple(between(prompt, suffix))


async def _events(body: CompletionBody, sampling: Sampling, name: str, batches: Batches) -> Events:
    """The pieces of every prompt's choices as they come; an echoed prompt is the first piece."""
    envelope = answers.Envelope("text_completion", name)
    n, wanted, prompts = sampling.n, sampling.logprobs is not None, body.prompts
    offsets: defaultdict[int, answers.Offsets] = defaultdict(answers.Offsets)
    usages: dict[int, Usage] = {}
    echoed: set[int] = set()
    async with contextlib.aclosing(batches):
        async for number, batch in batches:
            chunks = []
            for delta in batch:
                usages[number] = delta.usage or usages.get(number, Usage())
                if body.echo and number not in echoed:
                    echoed.add(number)
                    text = _prompt_text(prompts[number], delta.prompt)
                    tokens = _echoed(prompts[number], delta.prompt)
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
    if body.include_usage:
        yield [envelope.of([], answers.usage_body(usages.values()))]


def _choices(echo: bool, sampling: Sampling, number: int, prompt: Prompt, found: Completion) -> list[Object]:
    """One prompt's choices, with the prompt in front when it is echoed."""
    text = _prompt_text(prompt, found.prompt) if echo else ""
    before = _echoed(prompt, found.prompt) if echo else ()
    return [
        answers.completion_choice(
            number * sampling.n + choice.index,
            text + choice.text,
            (*before, *choice.tokens),
            choice.finish_reason or "length",
            answers.Offsets() if sampling.logprobs is not None else None,
        )
        for choice in found.choices or (Choice(),)
    ]


def _echoed(prompt: Prompt, tokens: Sequence[Token]) -> Sequence[Token]:
    """The prompt's tokens without the document-start token that the model read before the caller's text."""
    extra = isinstance(prompt, str) and sum(len(t.data) for t in tokens) > len(prompt.encode())
    return tokens[1:] if extra else tokens


def _prompt_text(prompt: Prompt, tokens: Sequence[Token]) -> str:
    """The prompt as text; ids are read back from their tokens' bytes."""
    if isinstance(prompt, str):
        return prompt
    return b"".join(bytes(t.data) or t.text.encode() for t in tokens).decode("utf-8", "replace")
