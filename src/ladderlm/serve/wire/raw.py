"""POST /v1/completions, /v1/embeddings and our /v1/next: raw text and token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import AsWhole, Id, Ranked, Wire
from ladderlm.serve.wire.chat import Count, Finish, UsageAnswer
from ladderlm.serve.wire.sampling import SamplingFields
from ladderlm.types import Sampling

MAX_LOGPROBS = 100
MAX_PROMPTS = 512
MAX_DOCUMENTS = 2048

Prompt = str | tuple[int, ...]
Ids = Annotated[list[Id], Field(min_length=1)]


class CompletionBody(SamplingFields):
    model: str | None = None
    prompt: str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: Annotated[int, Field(ge=0), AsWhole] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), AsWhole] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128), AsWhole] | None = None
    suffix: str | None = None

    @property
    def sampling(self) -> Sampling:
        if self.suffix and self.echo:
            raise UsageError("a prompt with a suffix cannot be echoed", where="echo", cure="leave it out")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise UsageError("best_of cannot be streamed", where="best_of", cure="leave it out, or stream: false")
        drawn = self.drawn(
            max_tokens=16 if self.max_tokens is None else self.max_tokens,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
            best_of=self.best_of,
        )
        if len(self.prompts) * drawn.n > MAX_PROMPTS:
            cure = "send several requests"
            raise UsageError(f"at most {MAX_PROMPTS} answers in one request", where="prompt", cure=cure)
        return drawn

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return prompts(self.prompt)


class EmbeddingBody(Ranked):
    model: str | None = None
    input: str | Ids | Annotated[list[str | Ids], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    dimensions: Annotated[int, Field(ge=1), AsWhole] | None = None
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def documents(self) -> tuple[Prompt, ...]:
        return prompts(self.input)


class NextBody(Wire):
    model: str | None = None
    prompt: str
    k: Annotated[int, Field(ge=1, le=1000), AsWhole] | None = None


def prompts(value: str | list[int] | list[str | list[int]]) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value[0], int):
        return (tuple(value),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in value)


# --- The answers --------------------------------------------------------------------------------------------------


class CompletionLogprobs(Wire):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Wire):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class CompletionAnswer(Wire):
    """A whole answer. With `stream` it comes in pieces, as server-sent events."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None


class EmbeddingUsage(Wire):
    prompt_tokens: Count
    total_tokens: Count


class Embedding(Wire):
    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingAnswer(Wire):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class NextToken(Wire):
    id: Id | None
    text: str
    logprob: float
    prob: Annotated[float, Field(ge=0, le=1)]


class NextAnswer(Wire):
    object: Literal["next"]
    model: str
    tokens: list[NextToken]
