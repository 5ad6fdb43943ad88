"""The engine: one thread that steps the network for all requests at once, and the door callers use.

Each step takes one token of every answer being written and a chunk of every prompt being read, as far as the step's
rows go; who had to wait comes first in the next. Rows do not influence each other, so neither do requests.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.cache import BLOCK, KVCache, Prefixes
from ladderlm.engine.grammar import Grammars
from ladderlm.engine.request import Choice, Generation, Request
from ladderlm.engine.sample import Sampler, logprob
from ladderlm.errors import Cancelled, ContextOverflow, DeadlineExceeded, Overloaded, UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import Cancel, Delta, FloatArray, Sampling

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

CHUNK = 128  # prompt tokens a request may read in a step
ACTIVE = 64  # requests worked on at a time
WAITING = 1024  # requests that may wait
CHOICES = 128  # answers of one request
UNKNOWN = 512  # tokens an answer without max_tokens is expected to hold


class Engine:
    """A `Model` on `backend`, which it closes. Safe to call from any number of threads; close it, or use it in `with`.

    `kv_bytes`: memory for the keys and values of requests and of those kept for reuse (default: half the machine's).
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer | None = None, *, kv_bytes: int | None = None) -> None:
        self.arch: Architecture = backend.arch
        self._network = backend
        self._grammars = Grammars(tokenizer, self.arch.vocab_size) if tokenizer else None
        self._stop_ids = tokenizer.stop_ids if tokenizer else ()
        self._position_bytes = self._network.block_bytes // BLOCK
        self._budget = (kv_bytes or _memory() // 2) // 2  # bytes in use; half as much is kept for reuse
        self._prefixes = Prefixes(self._budget // 2)
        self._version = 0  # of the weights
        self._stepping = threading.Lock()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting: deque[Request] = deque()
        self._active: deque[Request] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def vocab_size(self) -> int:
        return self.arch.vocab_size

    @property
    def context_length(self) -> int:
        return self.arch.context_length

    # --- The door -------------------------------------------------------------------------------------------------

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """logits_TV: row t scores the token after ids[t]."""
        self._check(ids)
        out = np.empty((len(ids), self.vocab_size), np.float32)

        def keep(position: int, row: FloatArray) -> None:
            out[position] = row

        self._complete([Request(ids, 0, keep)])
        return out

    def next_logits(self, ids: Sequence[int]) -> FloatArray:
        """logits_V of the token after `ids`: the last row of `logits(ids)`, at the cost of a prompt."""
        self._check(ids)
        rows: list[FloatArray] = []
        self._complete([Request(ids, len(ids) - 1, lambda position, row: rows.append(row.copy()))])
        return rows[0]

    def score(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of every token of every continuation. The prefix is computed once."""
        self._check(prefix)
        scores: list[list[float]] = [[] for _ in continuations]
        for continuation in continuations:
            self._check([*prefix, *continuation])

        def first(position: int, row: FloatArray) -> None:
            for score, continuation in zip(scores, continuations, strict=True):
                score.extend([logprob(row, continuation[0])] if continuation else [])

        def rest(score: list[float], continuation: Sequence[int]) -> Request:
            def row(position: int, logits: FloatArray) -> None:
                score.append(logprob(logits, continuation[position - len(prefix) + 1]))

            return Request([*prefix, *continuation[:-1]], len(prefix), row)

        self._complete([Request(prefix, len(prefix) - 1, first)])
        self._complete([rest(s, c) for s, c in zip(scores, continuations, strict=True) if len(c) > 1])
        return scores

    def generate(
        self, ids: Sequence[int], sampling: Sampling, *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Iterator[Delta]:
        """Deltas of tokens without text: each choice's, then its finish_reason; the usage last.

        The token that stops a choice (the tokenizer's or `sampling.stop_ids`) is not among its tokens. A set `cancel`
        ends it with finish_reason "cancelled"; a passed deadline raises DeadlineExceeded.
        """
        self._check(ids)
        room = self.context_length - len(ids)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if room == 0 and sampling.max_tokens != 0:
            raise ContextOverflow(f"{len(ids)} tokens fill the context of {self.context_length}", cure="shorten it")
        count = sampling.best_of or sampling.n
        if count > CHOICES:
            raise UsageError(f"at most {CHOICES} answers at a time", where=f"best_of={count}")
        samplers = [self._sampler(sampling, ids, index) for index in range(count)]
        return self._stream(Generation(ids, sampling, samplers, limit, cancel=cancel, deadline=deadline))

    def update(self, weights: Weights) -> None:
        """Other weights of the same shapes and precisions, in place, from the next step on.

        Requests under way go on from what they have read with the old ones; nothing read before is reused later.
        Raises UsageError, and changes nothing, where the new weights do not fit.
        """
        held = set(weights.names())
        for name, shape in self.arch.tensor_shapes().items():
            if name not in held or weights.shape(name) != shape:
                raise UsageError("new weights must have the shapes of the old", where=name)
        with self._stepping:
            self._network.update(weights)
            with self._lock:
                self._version += 1
                self._prefixes.clear()

    def close(self) -> None:
        """Ends all requests and frees the threads. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        self._network.close()
        self._prefixes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, ids: Sequence[int]) -> None:
        if not len(ids):
            raise UsageError("the prompt has no tokens")
        if len(ids) > self.context_length:
            raise ContextOverflow(
                f"{len(ids)} tokens do not fit the context of {self.context_length}", cure="shorten the prompt"
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"a token id lies outside 0..{self.vocab_size - 1}", where=f"{min(ids)}..{max(ids)}")

    def _sampler(self, sampling: Sampling, ids: Sequence[int], index: int) -> Sampler:
        grammar = None
        if sampling.response_format is not None:
            if self._grammars is None:
                raise UsageError("response_format needs a tokenizer", where="this engine was made without one")
            grammar = self._grammars.open(sampling.response_format)
        return Sampler(sampling, self.vocab_size, index=index, prompt=ids, stop_ids=self._stop_ids, grammar=grammar)

    def _submit(self, requests: Sequence[Request]) -> None:
        with self._lock:
            if self._closed:
                raise UsageError("the engine is closed")
            if len(self._waiting) + len(requests) > WAITING:
                raise Overloaded(f"{len(self._waiting)} requests are waiting", cure="try again later")
            for request in requests:
                request.changed = threading.Condition(self._lock)
                self._waiting.append(request)
            self._wake.notify_all()

    def _complete(self, requests: Sequence[Request]) -> None:
        """Runs `requests` to their end."""
        for first in range(0, len(requests), ACTIVE):
            some = requests[first : first + ACTIVE]
            self._submit(some)
            for request in some:
                for _ in self._deltas(request):
                    pass

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._submit([request])
        yield from self._deltas(request)

    def _deltas(self, request: Request) -> Iterator[Delta]:
        """What `request` writes, as it does; raises its error. Closing this ends the request."""
        assert request.changed is not None
        try:
            while True:
                with self._lock:
                    while not (request.deltas or request.finished):
                        request.changed.wait()
                    if not request.deltas:
                        break
                    if request.paused:
                        self._wake.notify_all()
                    delta = request.deltas.popleft()
                yield delta
            if request.error is not None:
                raise request.error
        finally:
            with self._lock:
                request.abandoned = True
                self._wake.notify_all()

    # --- The engine's thread --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return self._give_up(Cancelled("the engine was closed"))
                self._reap()
                self._admit()
                batch = self._choose()
                if not batch:  # a request that waits for its reader cannot tell us of its `cancel`: look now and then
                    self._wake.wait(0.1 if self._active or self._waiting else None)
                    continue
            try:
                with self._stepping:
                    self._step(batch)
            except Exception as error:
                with self._lock:
                    self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        for request in (*self._active, *self._waiting):
            self._end(request, error)
        self._active.clear()
        self._waiting.clear()

    def _end(self, request: Request, error: BaseException | None) -> None:
        request.error, request.finished = error or request.error, True
        assert request.changed is not None
        request.changed.notify_all()

    def _reap(self) -> None:
        """Drops requests that are done, cancelled or too late."""
        now = time.monotonic()
        for queue in (self._active, self._waiting):
            for request in tuple(queue):
                if request.cancel is not None and request.cancel.is_set() and not request.finished:
                    request.stop("cancelled")
                late = request.deadline is not None and now > request.deadline
                if late and not request.finished:
                    self._end(request, DeadlineExceeded("the deadline passed", where="generate"))
                if request.finished or request.abandoned:
                    queue.remove(request)
                    self._remember(request)
                    self._end(request, None)

    def _remember(self, request: Request) -> None:
        for cache in (request.cache, *(c.cache for c in request.choices)):
            if cache is not None:
                self._keep(cache)

    def _keep(self, cache: KVCache) -> None:
        """Remembers what was read, for requests that begin alike; not what other weights made of it."""
        if cache.version == self._version:
            self._prefixes.keep(cache)

    def _admit(self) -> None:
        """Starts waiting requests, in order, while there is room for their keys and values."""
        used = sum(self._cost(r) for r in self._active)
        while self._waiting and len(self._active) < ACTIVE:
            request = self._waiting[0]
            used += self._cost(request)
            if self._active and used > self._budget:
                return
            self._active.append(self._waiting.popleft())

    def _cost(self, request: Request) -> int:
        known = min(request.length, len(request.ids) + UNKNOWN * max(1, len(request.choices)))
        return known * self._position_bytes

    def _choose(self) -> list[tuple[Request, Choice | None, Piece]]:
        """The rows of the next step: single tokens first, then prompts; the queue turns by one each time."""
        batch: list[tuple[Request, Choice | None, Piece]] = []
        room = self._network.max_rows
        for request in self._active:
            if isinstance(request, Generation) and not request.reading and not request.paused:
                for choice in request.live[:room]:
                    assert choice.cache is not None
                    batch.append((request, choice, Piece(choice.cache, [choice.feed], 0)))
                    room -= 1
        for request in self._active:
            if request.reading and room > 0:
                if request.cache is None:
                    most = min(request.want, len(request.ids) - 1)
                    fresh = self._network.cache()
                    fresh.version = self._version
                    request.cache = self._prefixes.take(request.ids, most, fresh)
                    request.cached = len(request.cache)
                start = len(request.cache)
                ids = request.ids[start : start + min(CHUNK, room)]
                batch.append((request, None, Piece(request.cache, ids, min(len(ids), max(0, request.want - start)))))
                room -= len(ids)
        self._active.rotate(-1)
        return batch

    def _step(self, batch: Sequence[tuple[Request, Choice | None, Piece]]) -> None:
        logits = self._network.run([piece for _, _, piece in batch])
        row = 0
        for request, choice, piece in batch:
            rows = logits[row : row + len(piece.ids) - piece.want]
            row += len(rows)
            try:
                self._deliver(request, choice, piece, rows)
            except Exception as error:
                request.error, request.finished = error, True
        with self._lock:
            for request, _, _ in batch:
                assert request.changed is not None
                request.changed.notify_all()

    def _deliver(self, request: Request, choice: Choice | None, piece: Piece, rows: FloatArray) -> None:
        if choice is not None:
            assert isinstance(request, Generation)
            if choice.reason is None:
                request.wrote(choice, rows[0])
            return
        request.read(len(piece.cache) - len(rows), rows)
        if not request.reading:
            self._keep(piece.cache)
            request.began(rows[-1])


def _memory() -> int:
    """Bytes of memory this machine has; 8 GB where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 10**9
