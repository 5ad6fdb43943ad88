"""The scheduler: one thread that steps the network for all requests at once.

Each step takes the next token of every answer being written, the guesses that follow it, and pieces of the prompts
being read. Rows do not influence each other, so neither do requests. While answers are being written, prompts get
only so many rows that a step stays short; when nothing else is to do they get them all.

Who comes first is settled once, when a request arrives: its rank is the time of arrival, less AGE seconds for each
step of priority. So a request of higher priority goes before those that came up to AGE seconds earlier, and no
request waits for ever.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.cache import BLOCK, Alive, KVCache
from ladderlm.engine.hot import LoadedAdapter
from ladderlm.engine.prefixes import Prefixes, common
from ladderlm.engine.request import Choice, Generation, Request
from ladderlm.engine.speculate import Clock, Speculation
from ladderlm.errors import Cancelled, ContextOverflow, DeadlineExceeded, Overloaded, UsageError
from ladderlm.types import AGE, FloatArray

WAITING = 1024  # requests that may wait
UNKNOWN = 512  # tokens an answer without max_tokens is expected to hold
LATENCY = 0.04  # seconds that prompts may add to a step while answers are being written
FEWEST = 16  # prompt tokens a step has room for all the same
GLANCE = 0.05  # seconds between looks at the deadlines of those who wait


class _Work(NamedTuple):
    """What a step does for a request's prompt, or for one of its choices."""

    request: Request
    of: Request | Choice
    piece: Piece
    draft: Sequence[int] = ()


class State(NamedTuple):
    """What an engine is doing."""

    running: int
    waiting: int
    kv_used: float  # share of the blocks that may be alive, without those that are kept for reuse alone


class Scheduler:
    """Runs requests on `backend`, within `budget` bytes of keys and values; `submit` and the rest from any thread."""

    def __init__(self, backend: Backend, budget: int, clock: Clock, speculation: Speculation | None = None) -> None:
        self.backend, self._budget = backend, budget
        self._clock, self._speculation = clock, speculation
        self._blocks = max(1, budget // backend.block_bytes)  # that may be alive at a time
        self._alive = Alive()
        self._prefixes = Prefixes(budget // 2)
        self._version = 0  # of the weights
        self._stepping = threading.Lock()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting: list[tuple[float, int, Request]] = []  # a heap: the lowest rank first
        self._order = itertools.count()
        self._active: deque[Request] = deque()
        self._glanced = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # --- For other threads ----------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Queues `requests`. Raises UsageError when closed, Overloaded when too many wait, ContextOverflow."""
        for request in requests:
            self._check(request)
        with self._lock:
            if self._closed:
                raise UsageError("the engine is closed")
            if len(self._waiting) + len(requests) > WAITING:
                raise Overloaded(f"{len(self._waiting)} requests are waiting", cure="try again later")
            now = time.monotonic()
            for request in requests:
                request.came, request.rank = now, now - AGE * request.priority
                self._queue(request)
            self._wake.notify_all()

    def _check(self, request: Request) -> None:
        """Refuses what would not fit even alone."""
        if -(-len(request.ids) // BLOCK) > self._blocks:
            what = f"the keys and values of {len(request.ids)} tokens do not fit the engine's {self._budget:,} bytes"
            raise ContextOverflow(what, cure="shorten the prompt, or give the engine more (kv_bytes)")

    def poke(self) -> None:
        """Look again: a reader has caught up, or went away."""
        with self._lock:
            self._wake.notify_all()

    @property
    def bytes_used(self) -> tuple[int, int]:
        """Memory of all keys and values that are held, and of those that are kept for reuse."""
        return len(self._alive) * self.backend.block_bytes, self._prefixes.bytes

    @property
    def state(self) -> State:
        used = max(0, len(self._alive) - self._prefixes.bytes // self.backend.block_bytes)
        return State(len(self._active), len(self._waiting), used / self._blocks)

    def update(self, change: Callable[[], None]) -> None:
        """Calls `change`, which changes the weights, between two steps; nothing read before is reused later."""
        with self._stepping:
            change()
            with self._lock:
                self._version += 1
                self._prefixes.clear()

    def forget(self, adapter: LoadedAdapter) -> None:
        """Drops what was read with `adapter`; requests under way go on."""
        with self._lock:
            adapter.retired = True
            self._prefixes.forget((self._version, adapter))

    def close(self) -> None:
        """Ends all requests. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        self._prefixes.clear()

    # --- The engine's thread --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    every = (*self._active, *(request for _, _, request in self._waiting))
                    return self._fail(every, Cancelled("the engine was closed"))
                self._drop()
                self._admit()
                try:
                    batch = self._choose()
                except Overloaded as error:
                    self._shrink(error)
                    continue
                if not batch:  # a request that waits for its reader cannot tell us of its `cancel`: look now and then
                    self._wake.wait(0.1 if self._active or self._waiting else None)
                    continue
            try:
                with self._stepping:
                    self._step(batch)
            except Overloaded as error:
                with self._lock:
                    self._shrink(error)
            except Exception as error:
                with self._lock:
                    self._fail({id(w.request): w.request for w in batch}.values(), error)
            del batch  # it holds caches

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        for request in requests:
            if request.active:
                self._active.remove(request)
                request.active = False
            request.end(error)

    def _queue(self, request: Request) -> None:
        heapq.heappush(self._waiting, (request.rank, next(self._order), request))

    def _drop(self) -> None:
        """Lets go of requests that are done, cancelled or too late."""
        now = time.monotonic()
        gone = [request for request in self._active if _gone(request, now)]
        for request in gone:
            self._active.remove(request)
            request.active = False
            self._remember(request)
            request.end()
        if self._waiting and now > self._glanced + GLANCE:
            self._glanced = now
            gone = [request for _, _, request in self._waiting if _gone(request, now)]
            if gone:
                self._waiting = [entry for entry in self._waiting if not entry[2].finished]
                heapq.heapify(self._waiting)
                for request in gone:
                    request.end()

    def _remember(self, request: Request) -> None:
        for cache in request.caches:
            self._keep(request, cache)

    def _keep(self, request: Request, cache: KVCache) -> None:
        """Keeps what was read, for requests that begin alike; not what other weights made of it."""
        retired = request.adapter is not None and request.adapter.retired
        if request.reusable and not retired and cache.version == (self._version, request.adapter):
            self._prefixes.keep(cache)

    # --- Memory ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Starts waiting requests, in order, while there is room for their keys and values."""
        while self._waiting:
            request = self._waiting[0][2]
            room = self._blocks - sum(map(self._cost, self._active))
            if self._active and (len(self._active) >= self.backend.max_rows or self._cost(request) > room):
                if not self._displace(request):
                    return
                continue
            heapq.heappop(self._waiting)
            request.active = True
            request.waited = request.waited or time.monotonic() - request.came
            request.leader = self._leader(request)
            self._active.append(request)

    def _cost(self, request: Request) -> int:
        """Blocks that it is expected to need beside those it shares."""
        written = sum(max(UNKNOWN, len(choice.tokens) + BLOCK) for choice in request.choices)
        return -(-min(request.length, len(request.ids) + written) // BLOCK) - request.cached // BLOCK

    def _displace(self, request: Request) -> bool:
        """Sends an active request of lower priority, and of worse rank, back to wait; False if there is none."""
        lower = [r for r in self._active if r.priority < request.priority and r.rank > request.rank and r.restartable]
        if not lower:
            return False
        self._send_back(max(lower, key=lambda r: r.rank))
        return True

    def _send_back(self, request: Request) -> None:
        self._remember(request)
        request.restart()
        request.active = False
        self._active.remove(request)
        self._queue(request)

    def _leader(self, request: Request) -> tuple[Request, int] | None:
        """Who is reading the beginning of this prompt already, and how much: worth waiting for if it is a block."""
        best: tuple[Request, int] | None = None
        for other in self._active:
            if not other.begun and other.rank <= request.rank and other.adapter is request.adapter:
                same = common(other.ids, request.ids)
                if same >= BLOCK and (best is None or same > best[1]):
                    best = (other, same)
        return best

    def _fits(self, batch: Sequence[_Work]) -> bool:
        """Frees what `batch` will need: kept blocks first, then those of the request that came last.

        False if a request had to give its memory back: choose again.
        """
        need = sum(work.piece.cache.lacks(len(work.piece.cache) + len(work.piece.ids)) for work in batch)
        while need and len(self._alive) + need > self._blocks:
            if not self._prefixes.evict():
                error = "the engine has no memory left for keys and values"
                self._give_back(Overloaded(error, cure="give it more (kv_bytes)"))
                return False
        return True

    def _give_back(self, error: Overloaded) -> None:
        """Sends the request that came last back to wait; ends it with `error` where it is alone or cannot go back."""
        last = max(self._active, key=lambda r: (r.restartable, r.rank))
        if len(self._active) > 1 and last.restartable:
            self._send_back(last)
        else:
            self._fail([max(self._active, key=lambda r: r.rank)], error)

    def _shrink(self, error: Overloaded) -> None:
        """The backend's memory is full sooner than it said (others may share it): what is held now is all there is."""
        self._blocks = max(1, min(self._blocks - 1, len(self._alive)))
        if not self._prefixes.evict():
            self._give_back(error)

    # --- A step ---------------------------------------------------------------------------------------------------

    def _choose(self) -> list[_Work]:
        """What the next step does: answers first, then prompts, in order of rank."""
        while True:
            batch = self._pick()
            if not batch or self._fits(batch):
                return batch

    def _pick(self) -> list[_Work]:
        room = self.backend.max_rows
        writing: list[tuple[Request, Choice, KVCache]] = []
        readers: list[tuple[Request, Request | Choice]] = []
        for request in self._active:
            if not request.begun:
                readers.append((request, request))
            elif not request.paused():
                for choice in request.live:
                    if choice.cache is None or len(choice.cache) < choice.want:
                        readers.append((request, choice))
                        break  # the others will find the prompt among the kept ones
                    writing.append((request, choice, choice.cache))
        self._active.rotate(-1)  # who found no room comes first in the next
        writing = writing[:room]
        drafts: list[list[int]] = [[]] * len(writing)
        if writing and not readers and self._speculation is not None:
            drafts = self._guess(self._speculation, writing, room - len(writing))
        batch = [
            _Work(request, choice, Piece(cache, [choice.ids[-1], *draft], 0, request.adapter), draft)
            for (request, choice, cache), draft in zip(writing, drafts, strict=True)
        ]
        if readers:
            readers.sort(key=lambda pair: pair[0].rank)
            self._read(batch, readers, room - len(writing))
        return batch

    def _guess(
        self, speculation: Speculation, writing: Sequence[tuple[Request, Choice, KVCache]], room: int
    ) -> list[list[int]]:
        """What may follow the next token of each choice."""
        each = room // len(writing)
        asked = []
        for request, choice, _ in writing:
            assert isinstance(request, Generation)
            if choice.guesses is None:
                choice.guesses = speculation.start(len(request.ids))
            most = min(each, request.limit - len(choice.tokens) - 1)
            asked.append((choice.guesses, choice.ids, most))
        return speculation.propose(asked, len(writing))

    def _read(self, batch: list[_Work], readers: Sequence[tuple[Request, Request | Choice]], room: int) -> None:
        """Adds pieces of prompts: half of the room to the first, half of the rest to the next; what is left, again."""
        if batch and self._clock.prompt_row > 0:
            room = min(room, max(FEWEST, int(LATENCY / self._clock.prompt_row)))
        shares: list[int] = []
        started = [(request, of, self._start(request, of)) for request, of in readers if not _follows(request)]
        left = room
        for _, of, cache in started:
            share = min(max(FEWEST, left // 2), left, len(of.ids) - len(cache))
            shares.append(share)
            left -= share
        for i, (request, of, cache) in enumerate(started):
            more = min(left, len(of.ids) - len(cache) - shares[i])
            left -= more
            start, count = len(cache), shares[i] + more
            if count:
                want = min(count, max(0, of.want - start))
                batch.append(_Work(request, of, Piece(cache, of.ids[start : start + count], want, request.adapter)))

    def _start(self, request: Request, of: Request | Choice) -> KVCache:
        """Its cache, which starts from what is kept of sequences that begin alike, or from its adapter's tokens."""
        if of.cache is None:
            fresh = self.backend.cache()
            fresh.version, fresh.alive = (self._version, request.adapter), self._alive
            cache = self._prefixes.take(of.ids, min(of.want, len(of.ids) - 1), fresh)
            if request.adapter is not None and len(cache) < request.virtual:
                start = request.adapter.start
                cache = self.backend.cache()
                cache.version, cache.alive = fresh.version, self._alive
                cache.extend(start.ids, start.blocks)
            of.cache = cache
            if isinstance(of, Request):
                of.leader = None
                of.cached = len(of.cache) - of.virtual
        return of.cache

    def _step(self, batch: Sequence[_Work]) -> None:
        began = time.perf_counter()
        logits = self.backend.run([work.piece for work in batch])
        self._time(batch, time.perf_counter() - began)
        row = 0
        for work in batch:
            rows = logits[row : row + len(work.piece.ids) - work.piece.want]
            row += len(rows)
            try:
                self._deliver(work, rows)
            except Exception as error:
                work.request.error, work.request.finished = error, True
        for work in batch:  # not before: each would take the interpreter from the rest of the step
            work.request.flush()

    def _time(self, batch: Sequence[_Work], seconds: float) -> None:
        rows = prompt = 0
        for work in batch:
            if work.of is work.request or len(work.piece.ids) - len(work.draft) > 1:
                prompt += len(work.piece.ids)
            else:
                rows += len(work.piece.ids)
        if prompt:
            self._clock.add_prompt(rows, prompt, seconds)
        else:
            self._clock.add(rows, seconds)

    def _deliver(self, work: _Work, rows: FloatArray) -> None:
        request, of, draft, cache = work.request, work.of, work.draft, work.piece.cache
        if isinstance(of, Request):
            of.read(len(cache) - len(rows), rows)
            self._keep(request, cache)
            if len(cache) == len(of.ids):
                of.began(rows[-1])
            return
        if of.reason is not None or len(cache) < len(of.ids):
            return
        assert isinstance(request, Generation)
        before = len(of.ids)
        right = request.wrote(of, rows, draft)
        if draft:
            cache.truncate(before + right)
        if self._speculation is not None and of.guesses is not None:
            self._speculation.learn(of.guesses, of.ids, len(draft), right, ended=of.reason is not None)


def _gone(request: Request, now: float) -> bool:
    """Whether it is done; ends it if it is cancelled or too late."""
    if request.cancel is not None and not request.finished and request.cancel.is_set():
        request.stop("cancelled")
    if request.deadline is not None and not request.finished and now > request.deadline:
        request.error, request.finished = DeadlineExceeded("the deadline passed", where="generate"), True
    if request.abandoned:
        request.finished = True
    return request.finished


def _follows(request: Request) -> bool:
    """Whether another is still reading the beginning that they share."""
    if request.cache is not None or request.leader is None:
        return False
    leader, same = request.leader
    if not leader.active or leader.begun or leader.finished:
        return False
    return leader.cache is None or len(leader.cache) < min(same, len(leader.ids))
