"""From blocking iterators of Deltas to asyncio, with a bounded number of threads.

A worker thread pulls a Chat's iterator into a bounded buffer; the event loop drains it in batches. Leaving the async
iterator early (a closed tab, a stopped server) sets the cancel flag and closes the Chat's iterator.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from ladderlm.errors import Overloaded
from ladderlm.serve.calls import Meter
from ladderlm.types import AGE, Cancel, Delta

T = TypeVar("T")
Start = Callable[[Cancel], Iterator[Delta]]

BUFFER = 64  # Deltas a slow reader may lag behind before its generation waits


class Bridge:
    """At most `workers` streams run at once, the rest wait their turn; beyond `limit` requests it is Overloaded.

    Of those that wait the highest priority goes first, as in the engine: a step of it is worth AGE seconds.

    The threads are daemons, so that a model that is still loading never holds up the end of the process.
    """

    def __init__(self, workers: int = 32, limit: int = 256) -> None:
        self._size, self._limit = workers, limit
        self._jobs: queue.PriorityQueue[tuple[float, int, Callable[[], None]]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._requests = 0
        self._pipes: set[_Pipe] = set()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts one request in. Raises Overloaded when too many are here already."""
        if self._requests >= self._limit:
            raise Overloaded("too many requests at once", where=f"{self._limit} are waiting", cure="try again later")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def call(self, function: Callable[[], T]) -> T:
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

        self._submit(job)
        return await future

    async def stream(self, start: Start, priority: int = 0) -> AsyncGenerator[list[Delta], None]:
        """Batches of what the iterator from `start(cancel)` yields; its error is raised here."""
        pipe, meter = _Pipe(asyncio.get_running_loop()), Meter()
        self._pipes.add(pipe)
        self._submit(lambda: pipe.pump(start), priority)
        try:
            while batch := await pipe.take():
                meter.saw(batch)
                yield batch
        finally:
            meter.end()
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
        """Cancels every stream. Safe in a signal handler."""
        for pipe in tuple(self._pipes):
            pipe.stop()

    def _submit(self, job: Callable[[], None], priority: int = 0) -> None:
        self._jobs.put((time.monotonic() - AGE * priority, next(self._order), job))
        if not self._idle.acquire(blocking=False) and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, name=f"serve-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()[2]()
            self._idle.release()


class _Pipe:
    """One stream's bounded buffer between a worker (`pump`) and the event loop (`take`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._cancel = Cancel()
        self._room = threading.Semaphore(BUFFER)
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None

    def pump(self, start: Start) -> None:
        try:
            if not self._cancel.is_set():
                deltas = start(self._cancel)
                try:
                    for delta in deltas:
                        self._room.acquire()
                        if self._cancel.is_set():
                            break
                        self._deltas.append(delta)
                        self._wake()
                finally:
                    getattr(deltas, "close", lambda: None)()
        except BaseException as error:
            self._error = error
        self._ended = True
        self._wake()

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
                return batch
            if ended:
                if self._error is not None:
                    raise self._error
                return []
            await self._ready.wait()
            self._ready.clear()

    def stop(self) -> None:
        self._cancel.set()
        self._room.release()
