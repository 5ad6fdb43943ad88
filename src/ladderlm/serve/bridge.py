"""From blocking iterators of Deltas to asyncio, with a bounded number of threads.

A worker thread pulls a Chat's iterator into a bounded buffer; the event loop drains it in batches. A stream whose
reader lags behind is put aside, and its worker serves others until there is room again. Leaving the async iterator
early (a closed tab, a stopped server) sets the cancel flag and closes the Chat's iterator.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ladderlm.errors import Overloaded, Unavailable
from ladderlm.serve.meter import Meter
from ladderlm.types import AGE, Cancel, Delta

T = TypeVar("T")
Start = Callable[[Cancel], Iterator[Delta]]

BUFFER = 64  # Deltas a slow reader may lag behind before its generation waits
PATIENCE = 0.2  # seconds that a worker waits for a slow reader before it serves others
RECENT, WINDOW = 64, 120.0  # ends of requests, and seconds, that the estimate of a wait looks back on


class Bridge:
    """At most `workers` streams run at once, the rest wait their turn; beyond `limit` requests it is Overloaded.

    Of those that wait the highest priority goes first, as in the engine: a step of it is worth AGE seconds.
    `meter` makes what measures each stream.

    The threads are daemons, so that a model that is still loading never holds up the end of the process.
    """

    def __init__(self, workers: int = 32, limit: int = 256) -> None:
        self._size, self._limit = workers, limit
        self.meter: Callable[[], Meter | None] = lambda: None
        self.draining = False
        self._ends: deque[float] = deque(maxlen=RECENT)  # when requests ended
        self._jobs: queue.PriorityQueue[tuple[float, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._requests = 0
        self._pipes: set[_Pipe] = set()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts one request in. Raises Overloaded when too many are here already, Unavailable while draining."""
        if self.draining:
            raise Unavailable("the server is about to end", cure="try again, or another server")
        if self._requests >= self._limit:
            after = self.wait
            cure = f"try again in {math.ceil(after)} s"
            raise Overloaded("too many requests at once", where=f"{self._limit} are here", cure=cure, after=after)
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._ends.append(time.monotonic())

    @property
    def wait(self) -> float:
        """Seconds, 1 to 60, until those who wait now have had their turn, by how fast requests ended of late."""
        waiting = max(1, self._requests - self._size)
        now = time.monotonic()
        ends = [end for end in self._ends if now - end < WINDOW]
        pace = (now - ends[0]) / len(ends) if ends else 1.0  # seconds from one end to the next
        return min(60.0, max(1.0, waiting * pace))

    def drain(self, seconds: float) -> None:
        """Refuses new requests and waits until those that are here have ended, or until `seconds` are over."""
        self.draining = True
        until = time.monotonic() + seconds
        while self._requests and time.monotonic() < until:
            time.sleep(0.02)

    async def call(self, function: Callable[[], T], priority: int = 0) -> T:
        """The result of a blocking function, run by a worker."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def job() -> None:
            result, error = None, None
            try:
                result = function()
            except Exception as e:
                error = e
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, error)

        self._submit(job, priority)
        return await future

    async def stream(self, start: Start, priority: int = 0) -> AsyncGenerator[list[Delta], None]:
        """Batches of what the iterator from `start(cancel)` yields; its error is raised here."""
        rank = time.monotonic() - AGE * priority
        pipe = _Pipe(asyncio.get_running_loop(), start, self.meter(), lambda: self._put(pipe.pump, rank))
        self._pipes.add(pipe)
        self._put(pipe.pump, rank)
        try:
            while batch := await pipe.take():
                yield batch
        finally:
            self._pipes.discard(pipe)
            pipe.stop()

    async def merge(self, starts: Sequence[Start], priority: int = 0) -> AsyncGenerator[tuple[int, list[Delta]], None]:
        """The streams side by side; each batch comes with the number of its stream."""
        batches: asyncio.Queue[tuple[int, list[Delta]] | BaseException | None] = asyncio.Queue(BUFFER)

        async def forward(number: int, start: Start) -> None:
            try:
                async with contextlib.aclosing(self.stream(start, priority)) as stream:
                    async for batch in stream:
                        await batches.put((number, batch))
            except Exception as error:
                await batches.put(error)
            else:
                await batches.put(None)

        tasks = [asyncio.create_task(forward(number, start)) for number, start in enumerate(starts)]
        try:
            running = len(tasks)
            while running:
                item = await batches.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Cancels every stream: who reads one is told that it was cut off, Unavailable."""
        for pipe in tuple(self._pipes):
            pipe.stop(_ended())

    def _submit(self, job: Callable[[], None], priority: int = 0) -> None:
        self._put(job, time.monotonic() - AGE * priority)

    def _put(self, job: Callable[[], None], rank: float) -> None:
        self._jobs.put((rank, next(self._order), job))
        if not self._idle.acquire(blocking=False) and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, name=f"serve-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()[2]()
            self._idle.release()


def _ended() -> Unavailable:
    return Unavailable("the server ended before the answer was written", cure="ask again")


class _Pipe:
    """One stream's bounded buffer between a worker (`pump`) and the event loop (`take`).

    `resume` is to have `pump` called once more.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, start: Start, meter: Meter | None, resume: Callable[[], None]
    ) -> None:
        self._loop, self._start, self._meter, self._resume = loop, start, meter, resume
        self._source: Iterator[Delta] | None = None
        self._turn = threading.Lock()  # held to put the stream aside or take it up again
        self._aside = False
        self._cancel = Cancel()
        self._room = threading.Semaphore(BUFFER)
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._cut: BaseException | None = None  # why it was stopped, where its reader is still there
        self._whole = False  # the source came to its own end

    def pump(self) -> None:
        """Pulls until the end, or until the reader lags so far behind that the stream is put aside."""
        try:
            if self._source is None and not self._cancel.is_set():
                if self._meter is not None:
                    self._meter.begin()
                self._source = self._start(self._cancel)
            if self._source is not None and not self._pull(self._source):
                return
        except BaseException as error:
            self._error = error
        try:
            getattr(self._source, "close", lambda: None)()
        except BaseException as error:
            self._error = self._error or error
        if not self._whole:
            self._error = self._error or self._cut
        if self._meter is not None:
            self._meter.end(self._error, cancelled=self._cancel.is_set())
        self._ended = True
        self._wake()

    def _pull(self, source: Iterator[Delta]) -> bool:
        """Whether it came to an end; else the stream was put aside."""
        while not self._cancel.is_set():
            if not self._room.acquire(timeout=PATIENCE) and self._put_aside():
                return False
            delta = next(source, None)
            if delta is None:
                self._whole = not self._cancel.is_set()  # else it ended because it was told to
                return True
            if self._meter is not None:
                self._meter.see(delta)
            self._deltas.append(delta)
            self._wake()
        return True

    def _put_aside(self) -> bool:
        """False if there is room by now: the worker has it and goes on."""
        with self._turn:
            self._aside = not (self._room.acquire(blocking=False) or self._cancel.is_set())
            return self._aside

    def _take_up(self) -> None:
        with self._turn:
            resume, self._aside = self._aside, False
        if resume:
            self._resume()

    def _wake(self) -> None:
        # One wake-up serves a whole burst: the reader clears the flag before it drains.
        if not self._ready.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self) -> list[Delta]:
        """What has come since the last call, at least one; empty at the end."""
        while True:
            ended = self._ended
            batch = [self._deltas.popleft() for _ in range(len(self._deltas))]
            if batch:
                self._room.release(len(batch))
                self._take_up()
                return batch
            if ended:
                if self._error is not None:
                    raise self._error
                return []
            if self._cut is not None:  # the worker may be in the middle of a long step
                raise self._cut
            await self._ready.wait()
            self._ready.clear()

    def stop(self, why: BaseException | None = None) -> None:
        """Ends it. A reader that is still there gets what has come, then `why`."""
        self._cut = self._cut or why
        self._cancel.set()
        self._room.release()
        self._take_up()
        if why is not None:
            self._wake()
