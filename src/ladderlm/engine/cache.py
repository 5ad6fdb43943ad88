"""Keys and values of sequences, in blocks of 32 positions, and a store of recent ones to start from.

A sequence only ever writes after its own end, so blocks that are full can be shared by any number of sequences;
Python's reference counts free them. Taking a prefix copies at most one block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

BLOCK = 32  # positions in a block
Ints = npt.NDArray[np.int64]


class Block(Protocol):
    """Keys and values of 32 positions in every layer; freed with its last reference."""

    @property
    def address(self) -> int:
        """Where the backend finds it: an address, or the number of a page."""

    @property
    def nbytes(self) -> int: ...

    def copy(self) -> Self: ...


class HostBlock:
    """A block in this process's memory: zeros at first."""

    __slots__ = ("data",)

    def __init__(self, nbytes: int) -> None:
        self.data = np.zeros(nbytes, np.uint8)

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def copy(self) -> HostBlock:
        other = HostBlock(0)
        other.data = self.data.copy()
        return other


class KVCache:
    """One sequence: the ids whose keys and values are stored, the blocks that hold them and their addresses.

    `fresh` makes a block. `version` says which of an engine's weights they were computed with.
    """

    def __init__(self, fresh: Callable[[], Block], context_length: int) -> None:
        self.version = 0
        self.ids: list[int] = []
        self.blocks: list[Block] = []
        self.addresses: Ints = np.zeros(-(-context_length // BLOCK), np.int64)
        self._fresh = fresh

    def __len__(self) -> int:
        return len(self.ids)

    def reserve(self, positions: int) -> None:
        """Makes room for `positions` in all."""
        while len(self.blocks) * BLOCK < positions:
            self._append(self._fresh())

    def truncate(self, length: int) -> None:
        """Forgets positions from `length` on: rejected tokens that only this sequence holds."""
        del self.ids[length:]

    def _append(self, block: Block) -> None:
        self.addresses[len(self.blocks)] = block.address
        self.blocks.append(block)

    def fork(self, length: int) -> KVCache:
        """A sequence that starts with the first `length` positions of this one."""
        other = KVCache(self._fresh, len(self.addresses) * BLOCK)
        other.ids, other.version = self.ids[:length], self.version
        for block in self.blocks[: length // BLOCK]:
            other._append(block)
        if length % BLOCK:
            other._append(self.blocks[length // BLOCK].copy())
        return other


class Prefixes:
    """Recent sequences within `budget` bytes, the least recently used dropped first."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[int, tuple[npt.NDArray[np.int32], KVCache]] = OrderedDict()
        self._next = 0

    def take(self, ids: Sequence[int], most: int, fresh: KVCache) -> KVCache:
        """A new sequence that holds the longest stored common prefix of `ids`, at most `most` long; else `fresh`."""
        wanted, best, length = np.asarray(ids[:most], np.int32), -1, 0
        for key, (stored, _) in self._kept.items():
            n = min(len(stored), len(wanted))
            differs = np.flatnonzero(stored[:n] != wanted[:n])
            same = int(differs[0]) if len(differs) else n
            if same > length:
                best, length = key, same
        if best < 0:
            return fresh
        self._kept.move_to_end(best)
        return self._kept[best][1].fork(length)

    def keep(self, cache: KVCache) -> None:
        """Remembers what `cache` holds now; its owner may go on writing after its end."""
        ids = np.asarray(cache.ids, np.int32)
        if not len(ids) or self._budget <= 0:
            return
        for key, (stored, _) in list(self._kept.items()):
            if len(stored) <= len(ids) and np.array_equal(stored, ids[: len(stored)]):
                del self._kept[key]  # the new one holds it whole
            elif len(stored) > len(ids) and np.array_equal(stored[: len(ids)], ids):
                self._kept.move_to_end(key)
                return
        snapshot = KVCache(cache._fresh, len(cache.addresses) * BLOCK)
        snapshot.ids, snapshot.version = list(cache.ids), cache.version
        for block in cache.blocks[: -(-len(ids) // BLOCK)]:
            snapshot._append(block)
        self._kept[self._next] = (ids, snapshot)
        self._next += 1
        while self._kept and self.bytes > self._budget:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()

    @property
    def bytes(self) -> int:
        """Memory of the kept blocks, shared ones counted once."""
        return sum({id(b): b.nbytes for _, cache in self._kept.values() for b in cache.blocks}.values())
