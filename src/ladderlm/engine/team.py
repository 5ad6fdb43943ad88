"""A few threads that run the same compiled function together, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(eq=False)
class _Job:
    function: Callable[..., None]
    args: tuple[Any, ...]
    sync: Ints
    done: bool = False
    inside: set[int] = field(default_factory=set)  # threads that may still look at `sync`


class Team:
    """`size` - 1 sleeping threads and the caller. `run(f, *args)` calls f(tid, size, *args, sync) in all of them.

    `f` returns once the work is done, whoever did it, so the caller does not wait for a thread that comes late: that
    one finds everything claimed. Hence each run has its own `sync`, `counters` of zeros, until all have left it.
    """

    def __init__(self, size: int, counters: Callable[[], Ints]) -> None:
        self.size = size
        self._job: _Job | None = None
        self._syncs = [counters() for _ in range(2)]
        self._counters = counters
        self._lock = threading.RLock()  # `close` may come from a garbage collection anywhere
        self._left = threading.Condition(self._lock)
        self._jobs: list[_Job] = []
        self._go = [threading.Lock() for _ in range(size - 1)]
        for lock in self._go:
            lock.acquire()
        self._threads = [
            threading.Thread(target=self._work, args=(tid,), name=f"engine-{tid}", daemon=True)
            for tid in range(1, size)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, tid: int) -> None:
        while True:
            self._go[tid - 1].acquire()
            with self._lock:
                job = self._job
                if job is None:
                    return
                if job.done:
                    continue
                job.inside.add(tid)
            try:
                job.function(tid, self.size, *job.args, job.sync)
            finally:
                with self._lock:
                    job.inside.discard(tid)
                    self._left.notify_all()
            del job

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Returns when the work is done. `function` must not hold the GIL while it waits for the others."""
        with self._lock:
            self._jobs = [job for job in self._jobs if job.inside]
            taken = [job.sync for job in self._jobs]
            sync = next((s for s in self._syncs if not any(s is t for t in taken)), None)
            if sync is None:
                self._syncs.append(sync := self._counters())
            sync[:] = 0
            job = self._job = _Job(function, args, sync)
            self._jobs.append(job)
            for lock in self._go:
                if lock.locked():
                    lock.release()
        function(0, self.size, *args, sync)
        job.done = True

    def rest(self) -> None:
        """Waits until late threads have left the runs so far: what they may look at can be replaced."""
        with self._lock:
            self._left.wait_for(lambda: not any(job.inside for job in self._jobs))

    def close(self) -> None:
        """Ends the threads; once it returns none of them is in a function. Calling it again does nothing."""
        with self._lock:
            self._job = None
            for lock in self._go:
                if lock.locked():
                    lock.release()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
