"""The reference behind the engine's door: for the families that the compiled kernels do not run (yet).

It steps sequence by sequence, so requests cannot influence each other; how a prompt was cut into pieces shows in the
last bits, as the libraries' sums depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ladderlm.engine.backend import Piece
from ladderlm.engine.cache import BLOCK, HostBlock, KVCache
from ladderlm.engine.hot import VIRTUAL, LoadedAdapter, virtual_past
from ladderlm.engine.memory import Pool
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.models.adapter import Adapter, fit
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Blocks, Weights
from ladderlm.types import FloatArray


class PlainNetwork:
    """Runs steps of any decoder-only family in numpy. Not for concurrent use."""

    def __init__(self, arch: Architecture, weights: Weights) -> None:
        self.arch = arch
        self._pool = Pool(self.block_bytes)
        self._weights = Widened(weights)
        self._decoder = ReferenceDecoder(arch, self._weights)

    @property
    def block_bytes(self) -> int:
        return 4 * self.arch.layers * 2 * BLOCK * self.arch.kv_heads * self.arch.head_dim

    @property
    def max_rows(self) -> int:
        return 256

    def cache(self) -> KVCache:
        return KVCache(lambda: HostBlock(self._pool), self.arch.context_length)

    def run(self, pieces: Sequence[Piece]) -> FloatArray:
        """Appends every piece to its cache; logits (rows, vocab) of the wanted rows in order."""
        found = [np.zeros((0, self.arch.vocab_size), np.float32)]
        for cache, ids, want, adapter in pieces:
            start = len(cache)
            cache.reserve(start + len(ids))
            lora = adapter.packed if adapter else None
            decoder = ReferenceDecoder(self.arch, self._weights, lora) if lora else self._decoder
            hidden_TD = decoder.hidden(ids, start, _Kept(cache, self.arch, start))
            cache.ids.extend(ids)
            if want < len(ids):
                found.append(decoder.score(hidden_TD[want:]))
        return np.concatenate(found)

    def adapt(self, adapter: Adapter) -> LoadedAdapter:
        """Takes up an adapter. FormatError where it does not fit."""
        adapter, start = fit(adapter, self.arch), self.cache()
        if adapter.virtual is not None:
            start.reserve(adapter.tokens)
            past = _Kept(start, self.arch, 0)
            for layer, (k_PGK, v_PGK) in enumerate(virtual_past(adapter, self.arch, self._weights)):
                past.extend(layer, k_PGK, v_PGK)
            start.ids = [VIRTUAL] * adapter.tokens
        scale = np.float32(adapter.scale)
        return LoadedAdapter(adapter, {name: (a, scale * b) for name, (a, b) in adapter.pairs.items()}, start)

    def update(self, weights: Weights) -> None:
        """Other weights, in the place of these. Not during `run`."""
        self._weights = Widened(weights)
        self._decoder = ReferenceDecoder(self.arch, self._weights)

    def close(self) -> None:
        """Nothing to free."""


class Widened:
    """Weights as float32, each widened once and kept; those that are float32 in a mapped file stay there."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._kept: dict[str, FloatArray] = {}

    def names(self) -> list[str]:
        return self._weights.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(name)

    def blocks(self, name: str) -> Blocks | None:
        return self._weights.blocks(name)

    def float32(self, name: str) -> FloatArray:
        if name not in self._kept:
            self._kept[name] = self._weights.float32(name)
        return self._kept[name]


class _Kept:
    """The past of a sequence in the blocks of its cache, each (layers, 2, 32, key heads, head dim)."""

    def __init__(self, cache: KVCache, arch: Architecture, start: int) -> None:
        shape = (arch.layers, 2, BLOCK, arch.kv_heads, arch.head_dim)
        self._blocks = [
            block.data.view(np.float32).reshape(shape) for block in cache.blocks if isinstance(block, HostBlock)
        ]
        self._start = start

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        end = self._start + len(k_TGK)
        for which, new in enumerate((k_TGK, v_TGK)):
            for first, last in _by_block(self._start, end):
                rows = self._blocks[first // BLOCK][layer, which]
                rows[first % BLOCK : first % BLOCK + last - first] = new[first - self._start : last - self._start]
        k, v = (np.concatenate([b[layer, which] for b in self._blocks[: -(-end // BLOCK)]])[:end] for which in (0, 1))
        return k, v


def _by_block(start: int, end: int) -> Iterable[tuple[int, int]]:
    """The parts of start..end that lie in one block each."""
    while start < end:
        last = min(end, (start // BLOCK + 1) * BLOCK)
        yield start, last
        start = last
