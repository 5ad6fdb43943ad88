"""The engine's door: what callers ask for, checked and handed to the scheduler as requests."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ladderlm.engine.backend import Backend
from ladderlm.engine.grammar import Grammars
from ladderlm.engine.hot import LoadedAdapter
from ladderlm.engine.request import QUEUE, Generation, Request
from ladderlm.engine.sample import Sampler, logprob
from ladderlm.engine.scheduler import Scheduler, State
from ladderlm.engine.speculate import Clock, Speculation
from ladderlm.errors import ContextOverflow, NotFound, UsageError, nearest
from ladderlm.models.adapter import Adapter
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import Cancel, Delta, FloatArray, Sampling

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

TOGETHER = 256  # requests of one call that are queued at a time
CHOICES = 128  # answers of one request


class Engine:
    """A `Model` on `backend`, which it closes. Safe to call from any number of threads; close it, or use it in `with`.

    `kv_bytes`: memory for keys and values, of requests and of those kept for reuse (default: a quarter of the
    machine's). `speculate`: guess several tokens at a time where that pays (same answers, see `speculate`); with
    `draft`, also by a smaller model, which it closes too.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | None = None,
        *,
        kv_bytes: int | None = None,
        speculate: bool = True,
        draft: Backend | None = None,
    ) -> None:
        self.arch: Architecture = backend.arch
        if draft is not None and draft.arch.vocab_size != self.arch.vocab_size:
            sizes = f"{draft.arch.vocab_size} and {self.arch.vocab_size} tokens"
            raise UsageError("a draft model must have the model's vocabulary", where=sizes)
        self._backend, self._draft = backend, draft
        self._adapters: dict[str, LoadedAdapter] = {}
        self._adapting = threading.Lock()  # held while adapters or weights change
        self._grammars = Grammars(tokenizer, self.arch.vocab_size) if tokenizer else None
        self._stop_ids = tokenizer.stop_ids if tokenizer else ()
        clock = Clock()
        speculation = Speculation(clock, draft) if speculate else None
        self._scheduler = Scheduler(backend, kv_bytes or _memory() // 4, clock, speculation)

    @property
    def vocab_size(self) -> int:
        return self.arch.vocab_size

    @property
    def context_length(self) -> int:
        return self.arch.context_length

    @property
    def kv_bytes_used(self) -> tuple[int, int]:
        """Memory of all keys and values that are held, and of those among them that are kept for reuse."""
        return self._scheduler.bytes_used

    @property
    def state(self) -> State:
        """Requests under way and waiting, and how much of the memory and of the kept prompts is used."""
        return self._scheduler.state

    # --- The door -------------------------------------------------------------------------------------------------

    def logits(self, ids: Sequence[int], *, adapter: str | None = None) -> FloatArray:
        """logits_TV: row t scores the token after ids[t]."""
        loaded = self._adapter(adapter)
        self._check(ids, loaded)
        out = np.empty((len(ids), self.vocab_size), np.float32)

        def keep(position: int, row: FloatArray) -> None:
            out[position] = row

        self._complete([Request(ids, 0, keep, reusable=False, adapter=loaded)])
        return out

    def next_logits(self, ids: Sequence[int], *, adapter: str | None = None) -> FloatArray:
        """logits_V of the token after `ids`: the last row of `logits(ids)`, at the cost of a prompt."""
        loaded = self._adapter(adapter)
        self._check(ids, loaded)
        rows: list[FloatArray] = []
        self._complete([Request(ids, len(ids) - 1, lambda position, row: rows.append(row.copy()), adapter=loaded)])
        return rows[0]

    def score(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> list[list[float]]:
        """The log-probability of every token of every continuation. The prefix is computed once."""
        loaded = self._adapter(adapter)
        self._check(prefix, loaded)
        scores: list[list[float]] = [[] for _ in continuations]
        for continuation in continuations:
            if len(continuation):
                self._check(continuation, loaded, before=len(prefix))

        def first(position: int, row: FloatArray) -> None:
            for score, continuation in zip(scores, continuations, strict=True):
                score.extend([logprob(row, continuation[0])] if len(continuation) else [])

        def rest(score: list[float], continuation: Sequence[int]) -> Request:
            def row(position: int, logits: FloatArray) -> None:
                score.append(logprob(logits, continuation[position - len(prefix) + 1]))

            return Request([*prefix, *continuation[:-1]], len(prefix), row, reusable=False, adapter=loaded)

        self._complete([Request(prefix, len(prefix) - 1, first, adapter=loaded)])
        self._complete([rest(s, c) for s, c in zip(scores, continuations, strict=True) if len(c) > 1])
        return scores

    def generate(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
        adapter: str | None = None,
    ) -> Iterator[Delta]:
        """Deltas of tokens without text: each choice's, then its finish_reason; the usage last.

        The token that stops a choice (the tokenizer's or `sampling.stop_ids`) is not among its tokens. A set `cancel`
        ends it with finish_reason "cancelled"; a passed deadline raises DeadlineExceeded. Of waiting requests one of
        higher `priority` goes first, but not before those that came ten seconds earlier for each step of it. With
        `adapter`, one that was added under that name, its virtual tokens take room but do not count as usage.
        """
        loaded = self._adapter(adapter)
        self._check(ids, loaded)
        room = self.context_length - len(ids) - (len(loaded.start) if loaded else 0)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if room == 0 and sampling.max_tokens != 0:
            raise ContextOverflow(f"{len(ids)} tokens fill the context of {self.context_length}", cure="shorten it")
        count = sampling.best_of or sampling.n
        if count > CHOICES:
            raise UsageError(f"at most {CHOICES} answers at a time", where=f"best_of={count}")
        samplers = [self._sampler(sampling, ids, index) for index in range(count)]
        return self._stream(
            Generation(
                ids, sampling, samplers, limit, cancel=cancel, deadline=deadline, priority=priority, adapter=loaded
            )
        )

    def update(self, weights: Weights) -> None:
        """Other weights of the same shapes and precisions, in place, from the next step on.

        Requests under way go on from what they have read with the old ones; nothing read before is reused later.
        Raises UsageError, and changes nothing, where the new weights do not fit.
        """
        held = set(weights.names())
        for name, shape in self.arch.tensor_shapes().items():
            if name not in held or weights.shape(name) != shape:
                raise UsageError("new weights must have the shapes of the old", where=name)

        def change() -> None:
            self._backend.update(weights)
            for name, old in self._adapters.items():
                if old.adapter.kind == "prompt":  # it was read with the old weights
                    self._adapters = {**self._adapters, name: self._backend.adapt(old.adapter)}

        with self._adapting:
            self._scheduler.update(change)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """From now on requests may name it; in the place of an earlier one of that name, which those under way keep.

        Raises FormatError where it does not fit the model, UsageError for one that can only be merged into it.
        """
        if not adapter.apart:
            raise UsageError("this adapter changes whole matrices", where=str(adapter.path), cure="open base+adapter")
        with self._adapting:
            loaded = self._backend.adapt(adapter)
            old = self._adapters.get(name)
            self._adapters = {**self._adapters, name: loaded}
        if old is not None:
            self._scheduler.forget(old)

    def remove_adapter(self, name: str) -> None:
        """No new request may name it. Those under way go on. Raises NotFound."""
        with self._adapting:
            old = self._adapter(name)
            self._adapters = {other: loaded for other, loaded in self._adapters.items() if other != name}
        assert old is not None
        self._scheduler.forget(old)

    def _adapter(self, name: str | None) -> LoadedAdapter | None:
        if name is not None and name not in self._adapters:
            raise NotFound(f"no adapter {name!r}", where="adapter", cure=nearest(name, list(self._adapters)))
        return None if name is None else self._adapters[name]

    def close(self) -> None:
        """Ends all requests and frees the threads. Calling it again does nothing."""
        self._scheduler.close()
        self._backend.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, ids: Sequence[int], adapter: LoadedAdapter | None = None, *, before: int = 0) -> None:
        if not len(ids):
            raise UsageError("the prompt has no tokens")
        virtual = len(adapter.start) if adapter else 0
        if virtual + before + len(ids) > self.context_length:
            which = f" and the adapter's {virtual} virtual ones" if virtual else ""
            what = f"{before + len(ids)} tokens{which} do not fit the context of {self.context_length}"
            raise ContextOverflow(what, cure="shorten the prompt")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"a token id lies outside 0..{self.vocab_size - 1}", where=f"{min(ids)}..{max(ids)}")

    def _sampler(self, sampling: Sampling, ids: Sequence[int], index: int) -> Sampler:
        grammar = None
        if sampling.response_format is not None:
            if self._grammars is None:
                raise UsageError("response_format needs a tokenizer", where="this engine was made without one")
            grammar = self._grammars.open(sampling.response_format)
        room = self.context_length - len(ids)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        return Sampler(
            sampling, self.vocab_size, index=index, prompt=ids, stop_ids=self._stop_ids, grammar=grammar, limit=limit
        )

    def _complete(self, requests: Sequence[Request]) -> None:
        """Runs `requests` to their end."""
        for first in range(0, len(requests), TOGETHER):
            some = requests[first : first + TOGETHER]
            self._scheduler.submit(some)
            for request in some:
                for _ in self._deltas(request):
                    pass

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._scheduler.submit([request])
        yield from self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        """What `request` writes, as it does; raises its error. Closing this ends the request."""
        try:
            while (delta := request.deltas.get()) is not None:
                if request.held and request.deltas.qsize() < QUEUE // 2:
                    self._scheduler.poke()
                yield delta
            if request.error is not None:
                raise request.error
        finally:
            request.abandoned = True
            if not request.finished:
                self._scheduler.poke()


def _memory() -> int:
    """Bytes of memory this process may use; 8 GB where the machine does not tell."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 10**9
    try:  # a container may have less than the machine
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # none, or "max"
        return found
