"""Keys and values of one sequence, in blocks of 32 positions.

A sequence only ever writes after its own end, so blocks that are full can be shared by any number of sequences;
Python's reference counts free them. Taking a prefix copies at most one block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ladderlm.engine.memory import Pool

BLOCK = 32  # positions in a block
Ints = npt.NDArray[np.int64]


class Block(Protocol):
    """Keys and values of 32 positions in every layer; freed with its last reference. Weak references must work."""

    @property
    def address(self) -> int:
        """Where the backend finds it: an address, or the number of a page."""

    @property
    def nbytes(self) -> int: ...

    def copy(self) -> Self: ...


class HostBlock:
    """A block in this process's memory: zeros at first."""

    __slots__ = ("__weakref__", "_pool", "data")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.data = pool.take()

    def __del__(self) -> None:
        self._pool.give(self.data)

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def copy(self) -> HostBlock:
        other = HostBlock(self._pool)
        other.data[:] = self.data
        return other


class Alive:
    """Counts the blocks that somebody still holds."""

    def __init__(self) -> None:
        self._blocks: set[weakref.ref[Block]] = set()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Block) -> None:
        self._blocks.add(weakref.ref(block, self._blocks.discard))


class KVCache:
    """One sequence: the ids whose keys and values are stored, the blocks that hold them and their addresses.

    `fresh` makes a block. `version` says what they were computed with: only caches of the same one are alike.
    """

    def __init__(self, fresh: Callable[[], Block], context_length: int) -> None:
        self.version: Hashable = 0
        self.ids: list[int] = []
        self.blocks: list[Block] = []
        self.addresses: Ints = np.zeros(-(-context_length // BLOCK), np.int64)
        self.alive: Alive | None = None  # where the blocks it makes are counted
        self._fresh = fresh

    def __len__(self) -> int:
        return len(self.ids)

    def lacks(self, positions: int) -> int:
        """Blocks that `reserve` would make."""
        return max(0, -(-positions // BLOCK) - len(self.blocks))

    def reserve(self, positions: int) -> None:
        """Makes room for `positions` in all."""
        while len(self.blocks) * BLOCK < positions:
            self._append(self._fresh(), new=True)

    def truncate(self, length: int) -> None:
        """Forgets positions from `length` on: rejected tokens that only this sequence holds."""
        del self.ids[length:]

    def fork(self, length: int) -> KVCache:
        """A sequence that starts with the first `length` positions of this one."""
        other = KVCache(self._fresh, len(self.addresses) * BLOCK)
        other.version, other.alive = self.version, self.alive
        other.extend(self.ids[:length], self.blocks)
        return other

    def extend(self, ids: list[int], blocks: list[Block]) -> None:
        """Fills an empty sequence with `ids`, whose keys and values `blocks` hold; a last one in part is copied."""
        full = len(ids) // BLOCK
        for block in blocks[:full]:
            self._append(block)
        if len(ids) % BLOCK:
            self._append(blocks[full].copy(), new=True)
        self.ids = list(ids)

    def _append(self, block: Block, *, new: bool = False) -> None:
        self.addresses[len(self.blocks)] = block.address
        self.blocks.append(block)
        if new and self.alive is not None:
            self.alive.add(block)
