"""What the engine works on: a prompt to read, and the choices that grow from it.

All of it runs on the engine's thread, but for the queue of deltas, which the caller's thread empties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue

from ladderlm.engine.cache import KVCache
from ladderlm.engine.hot import LoadedAdapter
from ladderlm.engine.sample import Sampler, describe
from ladderlm.engine.speculate import Guesses
from ladderlm.types import Cancel, Delta, FinishReason, FloatArray, Sampling, Token, Usage

QUEUE = 64  # deltas a slow reader may leave unread before its request pauses


class Request:
    """A prompt whose rows from `want` on are needed. `row` is called with each, on the engine's thread.

    With an `adapter` its virtual tokens stand before the prompt in `ids`; `want` and `row` count without them.
    """

    def __init__(
        self,
        ids: Sequence[int],
        want: int,
        row: Callable[[int, FloatArray], None] | None = None,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
        reusable: bool = True,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self.adapter = adapter
        self.virtual = len(adapter.start) if adapter else 0  # tokens
        self.ids, self.want, self.row = [*(adapter.start.ids if adapter else ()), *ids], self.virtual + want, row
        self.cancel, self.deadline, self.priority = cancel, deadline, priority
        self.reusable = reusable  # whether others are likely to begin alike
        self.rank = 0.0  # who comes first: the scheduler's
        self.came = 0.0  # when it was queued
        self.waited = 0.0  # seconds before it was begun
        self.leader: tuple[Request, int] | None = None  # who is reading how much of this prompt's beginning already
        self.active = False
        self.begun = False  # the prompt is read
        self.cache: KVCache | None = None
        self.cached = 0  # prompt tokens whose keys and values were there already
        self.choices: list[Choice] = []
        self.abandoned = False  # nobody reads its deltas any more
        self.held = False  # too many are unread
        self.finished = False
        self.error: BaseException | None = None
        self.deltas: SimpleQueue[Delta | None] = SimpleQueue()  # None: the end
        self._told: list[Delta] = []

    @property
    def length(self) -> int:
        """Positions it may come to hold."""
        return len(self.ids)

    @property
    def live(self) -> list[Choice]:
        return [c for c in self.choices if c.reason is None]

    @property
    def caches(self) -> list[KVCache]:
        return [c for c in (self.cache, *(choice.cache for choice in self.choices)) if c is not None]

    @property
    def restartable(self) -> bool:
        """Whether it can give its memory back and read again what it has read: no row was handed out while reading."""
        return self.begun or self.cache is None or len(self.cache) <= self.want

    def restart(self) -> None:
        """Gives its memory back. What it wrote stays, to be read again."""
        self.cache = None
        for choice in self.choices:
            choice.cache = None

    def paused(self) -> bool:
        """Whether its reader is so slow that it must wait; it goes on when half of the queue is read."""
        self.held = self.deltas.qsize() >= (QUEUE // 2 if self.held else QUEUE)
        return self.held

    def read(self, start: int, rows: FloatArray) -> None:
        """Logits of prompt positions from `start` on."""
        if self.row is not None:
            for i, logits in enumerate(rows):
                self.row(start + i - self.virtual, logits)

    def began(self, logits: FloatArray) -> None:
        """The prompt is read; `logits` are those after its last token."""
        self.begun = self.finished = True

    def stop(self, reason: FinishReason) -> None:
        """Ends it early."""
        self.finished = True

    def tell(self, delta: Delta) -> None:
        """Hands `delta` to the reader with the next `flush`."""
        self._told.append(delta)

    def flush(self) -> None:
        """Wakes the reader. Best called when a step is about to run: a reader wants the interpreter to itself."""
        for delta in self._told:
            self.deltas.put(delta)
        self._told.clear()

    def end(self, error: BaseException | None = None) -> None:
        """The last call: frees its memory and tells its reader."""
        self.error, self.finished = self.error or error, True
        self.cache = self.leader = None
        for choice in self.choices:
            choice.cache = choice.guesses = None
        self.flush()
        self.deltas.put(None)


class Choice:
    """One answer in the making: its sampler, and the prompt and what follows; the last of `ids` is still to be fed."""

    def __init__(self, index: int, sampler: Sampler) -> None:
        self.index, self.sampler = index, sampler
        self.ids: list[int] = []
        self.cache: KVCache | None = None
        self.reason: FinishReason | None = None
        self.tokens: list[Token] = []
        self.guesses: Guesses | None = None  # what speculation knows of it

    @property
    def want(self) -> int:
        return len(self.ids) - 1


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
        priority: int = 0,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        super().__init__(ids, len(ids) - 1, cancel=cancel, deadline=deadline, priority=priority, adapter=adapter)
        self.sampling, self.limit = sampling, limit
        self.choices = [Choice(i, sampler) for i, sampler in enumerate(samplers)]
        self._buffered = len(samplers) > sampling.n
        self._prompt: list[Token] = []
        if sampling.prompt_logprobs is not None:
            self.want = self.virtual
            self._prompt.append(Token(ids[0]))
            self.row = self._prompt_row

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.choices) * self.limit

    def _prompt_row(self, position: int, logits: FloatArray) -> None:
        if (following := self.virtual + position + 1) < len(self.ids):
            self._prompt.append(describe(logits, self.ids[following], self.sampling.prompt_logprobs or 0))

    def began(self, logits: FloatArray) -> None:
        """Forks the prompt's cache into the choices, each of which draws its first token."""
        assert self.cache is not None
        self.begun = True
        if self._prompt:
            self.tell(Delta(prompt=tuple(self._prompt)))
        for choice in self.choices:
            choice.cache = self.cache if choice is self.choices[-1] else self.cache.fork(len(self.ids))
            choice.ids = list(self.ids)
            if self.limit == 0:
                self._end(choice, "length")
            else:
                self.wrote(choice, logits[None])
        self.cache = None
        self._finish_if_done()

    def wrote(self, choice: Choice, rows: FloatArray, draft: Sequence[int] = ()) -> int:
        """Draws the next tokens of `choice`: row i + 1 counts only if token i of `draft` was drawn from row i.

        So each token is drawn from the very logits, by the very sampler state, that it would be without a draft.
        Returns how many tokens of the draft were right.
        """
        new: list[Token] = []
        right, reason, last = 0, None, None
        for i, logits in enumerate(rows):
            token = choice.sampler.next(logits)
            assert token.id is not None
            if token.id in choice.sampler.stop_ids:
                reason, last = "stop", token
                break
            new.append(token)
            choice.ids.append(token.id)
            grammar = choice.sampler.grammar
            if grammar is not None and grammar.done:
                reason = "stop"
            elif len(choice.tokens) + len(new) >= self.limit:
                reason = "length"
            if i < len(draft) and draft[i] == token.id:
                right += 1
            if reason or right <= i:
                break
        choice.tokens += new
        if new and not self._buffered:
            self.tell(Delta(choice.index, tokens=tuple(new)))
        if reason:
            self._end(choice, "stop" if reason == "stop" else "length", last)
        return right

    def _end(self, choice: Choice, reason: FinishReason, stop: Token | None = None) -> None:
        choice.reason = reason
        if not self._buffered:
            told = stop if self.sampling.logprobs is not None else None
            self.tell(Delta(choice.index, finish_reason=reason, stop=told))
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.finished or self.live:
            return
        if self._buffered:
            best = sorted(self.choices, key=lambda c: -c.sampler.total_logprob / max(1, c.sampler.written))
            for index, choice in enumerate(best[: self.sampling.n]):
                self.tell(Delta(index, tokens=tuple(choice.tokens), finish_reason=choice.reason))
        written = sum(len(c.tokens) for c in self.choices)
        self.tell(Delta(usage=Usage(len(self.ids) - self.virtual, written, self.cached, queued=self.waited)))
        self.finished = True

    def stop(self, reason: FinishReason) -> None:
        for choice in self.live:
            self._end(choice, reason)
