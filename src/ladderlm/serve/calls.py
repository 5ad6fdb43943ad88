"""What is known of the request that is being answered: who asks, which model, how many tokens, how fast.

The door opens a Call; a context variable carries it to wherever an answer passes, whichever route that is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from ladderlm.serve.accounts import Who
from ladderlm.types import Delta, Usage

CONTENT_LIMIT = 1 << 20  # bytes of a request, and of an answer, that are kept where content is kept


@dataclass(slots=True)
class Call:
    """`first` is when the first piece of an answer came, `began` the request; both of the monotonic clock.

    `asked` and `answered` hold the content, where that is kept.
    """

    id: str
    who: Who
    method: str
    route: str = ""
    model: str = ""
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    finish: str | None = None
    at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float = 0.0
    asked: bytearray | None = None
    answered: list[str] | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, usage: Usage) -> None:
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        if usage.cost is not None:
            self.cost = (self.cost or 0.0) + usage.cost


CURRENT: ContextVar[Call | None] = ContextVar("ladderlm_call", default=None)


def name_model(name: str) -> None:
    """Tells the call, if there is one, which model answers."""
    if (call := CURRENT.get()) is not None:
        call.model = name


def add_usage(usage: Usage) -> None:
    """Tells the call what was read and written outside of a stream."""
    if (call := CURRENT.get()) is not None:
        call.add(usage)


class Meter:
    """What one stream of Deltas adds to the call. `end` settles it, whether the stream was whole or broken off."""

    def __init__(self) -> None:
        self._call = CURRENT.get()
        self._usage: Usage | None = None
        self._tokens = 0

    def saw(self, batch: Sequence[Delta]) -> None:
        call = self._call
        if call is None:
            return
        for delta in batch:
            self._usage = delta.usage or self._usage
            self._tokens += len(delta.tokens)
            call.finish = delta.finish_reason or call.finish
            if call.first is None and (delta.text or delta.tokens):
                call.first = time.monotonic()
            if call.answered is not None and delta.text:
                call.answered.append(delta.text)

    def end(self) -> None:
        if self._call is not None:
            self._call.add(self._usage or Usage(completion_tokens=self._tokens))
            self._call = None
