"""A few threads that run the same compiled function together, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Team:
    """`size` - 1 sleeping threads and the caller. `run(f, *args)` calls f(tid, size, *args) in all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._job: tuple[Callable[..., None], tuple[Any, ...]] | None = None
        self._go = [threading.Lock() for _ in range(size - 1)]
        self._done = threading.Semaphore(0)
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
            if self._job is None:
                return
            function, args = self._job
            try:
                function(tid, self.size, *args)
            finally:
                del function, args
                self._done.release()

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Returns when every thread has. `function` must not hold the GIL while it waits for the others."""
        self._job = (function, args)
        for lock in self._go:
            lock.release()
        function(0, self.size, *args)
        for _ in self._go:
            self._done.acquire()

    def close(self) -> None:
        self._job = None
        for lock in self._go:
            lock.release()
        for thread in self._threads:
            thread.join()
