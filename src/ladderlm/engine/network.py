"""A model ready to run: packed weights, buffers, threads, and one call that makes a step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm import events
from ladderlm.engine import forward as step
from ladderlm.engine.cache import KVCache
from ladderlm.engine.kernels import CHUNK
from ladderlm.engine.pack import BLOCKS, FIRST, HEAD, pack, padded
from ladderlm.engine.simd import BLOCK, COMPILED
from ladderlm.engine.team import Team
from ladderlm.models import rope
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray

MAX_ROWS = 256  # rows of a step: prompt tokens and single tokens together
SPAN = 8  # rows that share one pass of attention
MARGIN = 8  # rows beyond the last that a full tile may read (never use)


class Piece(NamedTuple):
    """Consecutive tokens of one sequence, to be appended to its cache; rows from `want` on get logits."""

    cache: KVCache
    ids: Sequence[int]
    want: int


class Network:
    """Runs steps of a plain Llama decoder (Architecture.plain) on `threads` threads. Not for concurrent use."""

    def __init__(self, arch: Architecture, weights: Weights, *, threads: int | None = None, key: str | None = None):
        self.arch = arch
        self.threads = threads or min(os.cpu_count() or 1, 8)
        self._packed = pack(arch, weights, key=key, threads=self.threads)
        names = [f"model.layers.{i}.{n}" for i in range(arch.layers) for n in ("input", "post_attention")]
        norms = [weights.float32(f"{name}_layernorm.weight") for name in names] + [weights.float32("model.norm.weight")]
        table = np.zeros((len(norms), padded(arch.dim)), np.float32)
        table[:, : arch.dim] = norms
        self._model = step.Model(self._packed.table, table, rope.table(arch, 0, arch.context_length))
        self._shape = step.Shape(
            arch.dim, arch.layers, arch.heads, arch.kv_heads, arch.head_dim, arch.hidden, arch.vocab_size, arch.norm_eps
        )
        self._work = _work(arch, self._packed.table, self.threads)
        self._sync = step.counters(arch.layers)
        self._team = Team(self.threads)
        self._warm()

    @property
    def block_floats(self) -> int:
        """Size of a cache block: keys and values of 32 positions in every layer."""
        return self.arch.layers * self.arch.kv_heads * BLOCK * (self.arch.head_dim + padded(self.arch.head_dim))

    def cache(self) -> KVCache:
        return KVCache(self.block_floats, self.arch.context_length)

    def run(self, pieces: Sequence[Piece]) -> FloatArray:
        """Appends every piece to its cache. Logits (rows, vocab) of the wanted rows in order, valid until the next run.

        At most MAX_ROWS tokens in all; ids and lengths must be valid.
        """
        ids: list[int] = []
        positions: list[int] = []
        spans: list[tuple[int, int]] = []
        wanted: list[int] = []
        tables = []
        for cache, tokens, want in pieces:
            start, row = len(cache), len(ids)
            cache.reserve(start + len(tokens))
            wanted.extend(range(row + want, row + len(tokens)))
            spans.extend((row + i, min(SPAN, len(tokens) - i)) for i in range(0, len(tokens), SPAN))
            ids.extend(tokens)
            positions.extend(range(start, start + len(tokens)))
            tables.extend([cache.addresses] * len(tokens))
        self._reserve_logits(len(wanted))
        rows = step.Rows(
            _ints(ids), _ints([*positions, *[0] * MARGIN]), np.stack(tables), _ints(spans).reshape(-1, 2), _ints(wanted)
        )
        self._sync[:] = 0
        self._team.run(step.forward, self._shape, self._model, rows, self._work, self._sync)
        for cache, tokens, _ in pieces:
            cache.ids.extend(tokens)
        logits: FloatArray = self._work.logits[: len(wanted), : self.arch.vocab_size]
        return logits

    def close(self) -> None:
        self._team.close()

    def _reserve_logits(self, rows: int) -> None:
        if rows > len(self._work.logits):
            size = (min(MAX_ROWS, max(rows, 2 * len(self._work.logits))), self._work.logits.shape[1])
            self._work = self._work._replace(logits=np.zeros(size, np.float32))

    def _warm(self) -> None:
        """Compiles the kernels, or loads them from disk, before the first request."""
        if not any(COMPILED.rglob("*.nbc")):
            for old in COMPILED.parent.glob("engine-*"):
                shutil.rmtree(old, ignore_errors=True)  # machine code of other versions of these sources
            events.emit("compile", "compiling the kernels, once on this machine: up to half a minute")
        start = time.monotonic()
        self.run([Piece(self.cache(), [0], 0)])
        events.emit("compile", finished=True, data={"seconds": time.monotonic() - start})


def _ints(values: Sequence[object]) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)


def _work(arch: Architecture, table: npt.NDArray[np.int64], threads: int) -> step.Work:
    rows = MAX_ROWS + MARGIN

    def zeros(*shape: int) -> FloatArray:
        return np.zeros(shape, np.float32)

    dim, hidden, heads = padded(arch.dim), padded(arch.hidden), padded(arch.heads * arch.head_dim)
    wide = padded(arch.head_dim)
    return step.Work(
        x=zeros(rows, dim),
        normed=zeros(rows, dim),
        qkv=zeros(rows, int(table[FIRST : FIRST + 3, BLOCKS].sum()) * BLOCK),
        mixed=zeros(rows, heads),
        hidden=zeros(rows, hidden),
        sums=zeros(rows, max(dim, hidden, heads) // 32),
        logits=zeros(16, int(table[HEAD, BLOCKS]) * BLOCK),
        panel=zeros(threads, CHUNK * BLOCK),
        tiles=zeros(threads, 2, rows * BLOCK),
        scores=zeros(threads, SPAN, padded(arch.context_length)),
        out=zeros(threads, SPAN, wide + 1),
    )
