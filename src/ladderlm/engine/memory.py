"""Memory the kernels read fast: on cache lines, in huge pages where the system has them."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
HUGE = 2**21  # bytes of a huge page
SLAB = 2**23  # bytes that small blocks are cut from
IDLE = 2**26  # bytes of blocks that nobody holds, kept for the next


def arena(size: int) -> Bytes:
    """Zeroed bytes that begin on a huge page: a page table of 4 KB pages costs more than some reads."""
    memory = mmap.mmap(-1, size + HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    first = -int(whole.ctypes.data) % HUGE
    return whole[first : first + size]


def aligned(nbytes: int) -> Bytes:
    """Zeros that begin on a cache line: vectors that straddle two take twice as long to load."""
    whole = np.zeros(nbytes + 64, np.uint8)
    first = -int(whole.ctypes.data) % 64
    return whole[first : first + nbytes]


class Pool:
    """Zeroed pieces of `nbytes`, cut from arenas and used again. Safe between threads."""

    def __init__(self, nbytes: int) -> None:
        self._step = -(-nbytes // 64) * 64
        self._nbytes = nbytes
        self._free: list[Bytes] = []
        self._lock = threading.Lock()

    def take(self) -> Bytes:
        with self._lock:
            if not self._free:
                count = max(1, SLAB // self._step)
                slab = arena(count * self._step)
                self._free = [slab[i * self._step :][: self._nbytes] for i in range(count)]
                return self._free.pop()
            piece = self._free.pop()
        piece[:] = 0  # numbers of another request must not reach this one, least of all NaN
        return piece

    def give(self, piece: Bytes) -> None:
        """Takes a piece back; the memory of an arena is freed when none of its pieces is kept."""
        if len(self._free) * self._step < IDLE:
            self._free.append(piece)
