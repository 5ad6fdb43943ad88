"""One step of a Llama decoder: every thread makes one compiled call that runs the whole network.

A step takes rows: any mix of prompt chunks and single tokens of any sequences. Threads claim work within a phase from
a shared counter and meet at a barrier between phases; who computes what never changes a result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm.engine import kernels, simd
from ladderlm.engine.pack import BLOCKS, EMBED, FIRST, HEAD
from ladderlm.engine.simd import BLOCK, kernel
from ladderlm.types import FloatArray

Ints = npt.NDArray[np.int64]
PHASES = 10  # in a layer
LINE = 8  # int64 in a cache line: counters stay apart
SPINS = 2000  # polls (some tens of microseconds) before a waiting thread gives its core away
GRAINS = 4  # pieces of a phase for each thread


class Shape(NamedTuple):
    """The architecture's numbers, as the compiled code takes them."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    eps: float


class Model(NamedTuple):
    """What does not change: the matrices' table, norms [2 * layers + 1][dim], angles [context][2][head_dim / 2]."""

    table: Ints
    norms: FloatArray
    angles: FloatArray


class Rows(NamedTuple):
    """What a step computes: for each row a token, its position and the blocks of its sequence's cache.

    `spans` lists (first row, count) of at most 8 consecutive rows of one sequence; `wanted` rows get logits.
    """

    ids: Ints
    positions: Ints
    blocks: Ints
    spans: Ints
    wanted: Ints


class Work(NamedTuple):
    """Buffers of a step: [rows][columns padded to 32], and one of each of the last four for each thread."""

    x: FloatArray
    normed: FloatArray
    qkv: FloatArray
    mixed: FloatArray
    hidden: FloatArray
    sums: FloatArray
    logits: FloatArray
    panel: FloatArray
    tiles: FloatArray
    scores: FloatArray
    out: FloatArray


@kernel
def _meet(sync: Any, threads: int, phase: int) -> int:
    """Waits until all threads have finished `phase`; the next phase's number."""
    if threads > 1:
        here, goal, polls = sync.ctypes.data, threads * (phase + 1), 0
        simd.atomic_add(here, 1)
        while simd.atomic_load(here) < goal:
            polls += 1
            if polls > SPINS:
                simd.give_way()
    return phase + 1


@kernel
def _claim(sync: Any, phase: int, grain: int) -> int:
    """The first of the next `grain` unclaimed items of a phase."""
    return simd.atomic_add(sync.ctypes.data + 8 * LINE * (phase + 1), grain)


@kernel
def _grain(items: int, threads: int) -> int:
    return max(1, items // (threads * GRAINS))


@kernel
def _norm_phase(s: Any, x: Any, weight: Any, w: Any, rows: Any, count: int, sync: Any, phase: int) -> None:
    """normed and sums of `count` rows of x; `rows[i]` is the source of row i."""
    i = _claim(sync, phase, 1)
    while i < count:
        kernels.normalise(x, rows[i], weight, s.dim, s.eps, w.normed, i)
        kernels.sum_groups(w.normed, i, w.sums)
        i = _claim(sync, phase, 1)


@kernel
def _sums_phase(x: Any, w: Any, count: int, sync: Any, phase: int) -> None:
    i = _claim(sync, phase, 1)
    while i < count:
        kernels.sum_groups(x, i, w.sums)
        i = _claim(sync, phase, 1)


@kernel
def _qkv_phase(s: Any, m: Any, w: Any, count: int, panel: int, tile: int, threads: int, sync: Any, phase: int) -> None:
    """Queries, keys and values, side by side in `qkv`; `m` are the layer's matrices."""
    n0, n1 = m[0, BLOCKS], m[0, BLOCKS] + m[1, BLOCKS]
    items = n1 + m[2, BLOCKS]
    grain = _grain(items, threads)
    first = _claim(sync, phase, grain)
    while first < items:
        for i in range(first, min(items, first + grain)):
            part = 0 if i < n0 else (1 if i < n1 else 2)
            block = i - (0 if part == 0 else (n0 if part == 1 else n1))
            kernels.project(m[part], block, w.normed, w.sums, count, panel, tile)
            kernels.put(tile, w.qkv, i * BLOCK, count)
        first = _claim(sync, phase, grain)


@kernel
def _turn_phase(s: Any, model: Any, r: Any, w: Any, m: Any, layer: int, sync: Any, phase: int) -> None:
    """Rotates queries and keys; stores keys and values in the caches."""
    half, wide = s.head_dim // 2, (s.head_dim + 31) // 32 * 32
    key, value = m[0, BLOCKS] * BLOCK, (m[0, BLOCKS] + m[1, BLOCKS]) * BLOCK
    size = BLOCK * (s.head_dim + wide)
    scale, count = np.float32(1 / np.sqrt(s.head_dim)), len(r.ids)
    i = _claim(sync, phase, 1)
    while i < count:
        position = r.positions[i]
        angles, x = model.angles[position], w.qkv[i]
        for h in range(s.heads):
            kernels.turn(x, h * s.head_dim, half, angles, scale)
        for h in range(s.kv_heads):
            kernels.turn(x, key + h * s.head_dim, half, angles, np.float32(1))
            place = simd.floats(r.blocks[i, position // BLOCK] + 4 * size * (layer * s.kv_heads + h), size)
            kernels.remember(x, key + h * s.head_dim, value + h * s.head_dim, s.head_dim, place, position % BLOCK)
        i = _claim(sync, phase, 1)


@kernel
def _attention_phase(s: Any, r: Any, w: Any, layer: int, tid: int, sync: Any, phase: int) -> None:
    """Attention for each span and key head."""
    group, items = s.heads // s.kv_heads, len(r.spans) * s.kv_heads
    size = BLOCK * (s.head_dim + (s.head_dim + 31) // 32 * 32)
    i = _claim(sync, phase, 1)
    while i < items:
        row, count, kv = r.spans[i // s.kv_heads, 0], r.spans[i // s.kv_heads, 1], i % s.kv_heads
        base = 4 * size * (layer * s.kv_heads + kv)
        for h in range(group if count > 1 else 1):
            heads = 1 if count > 1 else group
            kernels.attend(
                w.qkv, row, count, kv * group + h, heads, s.head_dim, r.positions, r.blocks[row], base,
                w.scores[tid], w.out[tid], w.mixed,
            )  # fmt: skip
        i = _claim(sync, phase, 1)


@kernel
def _add_phase(m: Any, x: Any, w: Any, count: int, panel: int, tile: int, threads: int, sync: Any, phase: int) -> None:
    """Adds matrix m times x to the residual stream."""
    grain = _grain(m[BLOCKS], threads)
    first = _claim(sync, phase, grain)
    while first < m[BLOCKS]:
        for block in range(first, min(m[BLOCKS], first + grain)):
            kernels.project(m, block, x, w.sums, count, panel, tile)
            kernels.accumulate(tile, w.x, block * BLOCK, count)
        first = _claim(sync, phase, grain)


@kernel
def _gate_phase(m: Any, w: Any, count: int, panel: int, tiles: Any, threads: int, sync: Any, phase: int) -> None:
    """hidden = silu(gate) * up."""
    grain = _grain(m[4, BLOCKS], threads)
    gates, ups = tiles[0].ctypes.data, tiles[1].ctypes.data
    first = _claim(sync, phase, grain)
    while first < m[4, BLOCKS]:
        for block in range(first, min(m[4, BLOCKS], first + grain)):
            kernels.project(m[4], block, w.normed, w.sums, count, panel, gates)
            kernels.project(m[5], block, w.normed, w.sums, count, panel, ups)
            kernels.gate(gates, ups, w.hidden, block * BLOCK, count)
        first = _claim(sync, phase, grain)


@kernel
def _head_phase(m: Any, w: Any, count: int, panel: int, tile: int, threads: int, sync: Any, phase: int) -> None:
    grain = _grain(m[BLOCKS], threads)
    first = _claim(sync, phase, grain)
    while first < m[BLOCKS]:
        for block in range(first, min(m[BLOCKS], first + grain)):
            kernels.project(m, block, w.normed, w.sums, count, panel, tile)
            kernels.put(tile, w.logits, block * BLOCK, count)
        first = _claim(sync, phase, grain)


@kernel
def forward(tid: int, threads: int, s: Any, model: Any, r: Any, w: Any, sync: Any) -> None:
    """The whole network for the rows `r`, as thread `tid` of `threads`. `sync` holds zeros at the start."""
    count, phase, every = len(r.ids), 0, np.arange(len(r.ids))
    panel, tile = w.panel[tid].ctypes.data, w.tiles[tid, 0].ctypes.data
    i = _claim(sync, phase, 1)
    while i < count:
        kernels.embed(model.table[EMBED], r.ids[i], s.dim, w.x, i)
        i = _claim(sync, phase, 1)
    phase = _meet(sync, threads, phase)
    for layer in range(s.layers):
        m = model.table[FIRST + 7 * layer : FIRST + 7 * layer + 7]
        _norm_phase(s, w.x, model.norms[2 * layer], w, every, count, sync, phase)
        phase = _meet(sync, threads, phase)
        _qkv_phase(s, m, w, count, panel, tile, threads, sync, phase)
        phase = _meet(sync, threads, phase)
        _turn_phase(s, model, r, w, m, layer, sync, phase)
        phase = _meet(sync, threads, phase)
        _attention_phase(s, r, w, layer, tid, sync, phase)
        phase = _meet(sync, threads, phase)
        _sums_phase(w.mixed, w, count, sync, phase)
        phase = _meet(sync, threads, phase)
        _add_phase(m[3], w.mixed, w, count, panel, tile, threads, sync, phase)
        phase = _meet(sync, threads, phase)
        _norm_phase(s, w.x, model.norms[2 * layer + 1], w, every, count, sync, phase)
        phase = _meet(sync, threads, phase)
        _gate_phase(m, w, count, panel, w.tiles[tid], threads, sync, phase)
        phase = _meet(sync, threads, phase)
        _sums_phase(w.hidden, w, count, sync, phase)
        phase = _meet(sync, threads, phase)
        _add_phase(m[6], w.hidden, w, count, panel, tile, threads, sync, phase)
        phase = _meet(sync, threads, phase)
    if len(r.wanted):
        _norm_phase(s, w.x, model.norms[2 * s.layers], w, r.wanted, len(r.wanted), sync, phase)
        phase = _meet(sync, threads, phase)
        _head_phase(model.table[HEAD], w, len(r.wanted), panel, tile, threads, sync, phase)
        phase = _meet(sync, threads, phase)


def counters(layers: int) -> Ints:
    """A zeroed `sync` buffer: the barrier's count, then one claim counter for each phase, a cache line each."""
    return np.zeros(LINE * (PHASES * layers + 8), np.int64)
