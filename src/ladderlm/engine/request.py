"""What the engine works on: a prompt to read, and the choices that grow from it.

The engine's thread calls `read`, `began` and `wrote`; the caller's thread waits in `next` or `wait`. One lock, the
engine's, guards what both touch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from ladderlm.engine.cache import KVCache
from ladderlm.engine.sample import Sampler, describe
from ladderlm.types import Cancel, Delta, FinishReason, FloatArray, Sampling, Token, Usage

QUEUE = 64  # deltas a slow reader may leave unread before its request pauses


class Request:
    """A prompt whose rows from `want` on are needed. `row` is called with each, on the engine's thread."""

    def __init__(
        self,
        ids: Sequence[int],
        want: int,
        row: Callable[[int, FloatArray], None] | None = None,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
    ) -> None:
        self.ids, self.want, self.row = list(ids), want, row
        self.cancel, self.deadline = cancel, deadline
        self.abandoned = False
        self.cache: KVCache | None = None
        self.cached = 0  # prompt tokens whose keys and values were there already
        self.choices: list[Choice] = []
        self.error: BaseException | None = None
        self.finished = False
        self.deltas: deque[Delta] = deque()
        self.changed: threading.Condition | None = None

    @property
    def length(self) -> int:
        """Positions it may come to hold."""
        return len(self.ids)

    @property
    def reading(self) -> bool:
        return self.cache is None or len(self.cache) < len(self.ids)

    @property
    def paused(self) -> bool:
        return False

    def read(self, start: int, rows: FloatArray) -> None:
        """Logits of prompt positions from `start` on."""
        if self.row is not None:
            for i, logits in enumerate(rows):
                self.row(start + i, logits)

    def began(self, logits: FloatArray) -> None:
        """The prompt is read; `logits` are those after its last token."""
        self.finished = True

    def stop(self, reason: FinishReason) -> None:
        """Ends it early."""
        self.finished = True


class Choice:
    """One answer in the making: its cache, its sampler and the token to feed next."""

    def __init__(self, index: int, sampler: Sampler) -> None:
        self.index, self.sampler = index, sampler
        self.cache: KVCache | None = None
        self.feed: int = -1
        self.reason: FinishReason | None = None
        self.tokens: list[Token] = []


class Generation(Request):
    """A request that writes `best_of` (or n) answers of at most `limit` tokens."""

    def __init__(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        samplers: Sequence[Sampler],
        limit: int,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
    ) -> None:
        super().__init__(ids, len(ids) - 1, cancel=cancel, deadline=deadline)
        self.sampling, self.limit = sampling, limit
        self.choices = [Choice(i, sampler) for i, sampler in enumerate(samplers)]
        self._buffered = len(samplers) > sampling.n
        self._prompt: list[Token] = []
        if sampling.prompt_logprobs is not None:
            self.want = 0
            self._prompt.append(Token(self.ids[0]))
            self.row = self._prompt_row

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.choices) * self.limit

    @property
    def paused(self) -> bool:
        return len(self.deltas) >= QUEUE

    @property
    def live(self) -> list[Choice]:
        return [c for c in self.choices if c.reason is None]

    def _prompt_row(self, position: int, logits: FloatArray) -> None:
        if position + 1 < len(self.ids):
            self._prompt.append(describe(logits, self.ids[position + 1], self.sampling.prompt_logprobs or 0))

    def began(self, logits: FloatArray) -> None:
        """Forks the prompt's cache into the choices, each of which draws its first token."""
        assert self.cache is not None
        if self._prompt:
            self.deltas.append(Delta(prompt=tuple(self._prompt)))
        for choice in self.choices:
            choice.cache = self.cache if choice is self.choices[-1] else self.cache.fork(len(self.ids))
            if self.limit == 0:
                self._end(choice, "length")
            else:
                self.wrote(choice, logits)
        self._finish_if_done()

    def wrote(self, choice: Choice, logits: FloatArray) -> None:
        """Draws the next token of `choice`."""
        token = choice.sampler.next(logits)
        assert token.id is not None
        if token.id in choice.sampler.stop_ids:
            self._end(choice, "stop")
            return
        choice.feed = token.id
        choice.tokens.append(token)
        if not self._buffered:
            self.deltas.append(Delta(choice.index, tokens=(token,)))
        grammar = choice.sampler.grammar
        if grammar is not None and grammar.done:
            self._end(choice, "stop")
        elif len(choice.tokens) >= self.limit:
            self._end(choice, "length")

    def _end(self, choice: Choice, reason: FinishReason) -> None:
        choice.reason = reason
        if not self._buffered:
            self.deltas.append(Delta(choice.index, finish_reason=reason))
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.finished or self.live:
            return
        if self._buffered:
            best = sorted(self.choices, key=lambda c: -c.sampler.total_logprob / max(1, c.sampler.written))
            for index, choice in enumerate(best[: self.sampling.n]):
                self.deltas.append(Delta(index, tokens=tuple(choice.tokens), finish_reason=choice.reason))
        written = sum(len(c.tokens) for c in self.choices)
        self.deltas.append(Delta(usage=Usage(len(self.ids), written, self.cached)))
        self.finished = True

    def stop(self, reason: FinishReason) -> None:
        for choice in self.live:
            self._end(choice, reason)
