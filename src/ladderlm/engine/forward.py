"""One step of a decoder: every thread makes one compiled call that runs the whole network.

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
PHASES = 13  # in a layer, at most
LINE = 8  # int64 in a cache line: counters stay apart
SPINS = 2000  # polls (some tens of microseconds) before a waiting thread gives its core away
GRAINS = 4  # pieces of a phase for each thread


INNER, SANDWICH, POST, PARALLEL, PARALLEL_TWO = 1, 2, 3, 4, 5  # where the norms are; see Architecture.placement
# What stands beside the matrices of a layer, as columns of Model.sides; NORM and NORM_BIAS of its last row are the
# final norm.
(NORM, NORM_BIAS, ATTENTION_OUT, ATTENTION_OUT_BIAS, MIDDLE, MIDDLE_BIAS, MLP_OUT, MLP_OUT_BIAS, Q_NORM, K_NORM,
 QKV_BIAS, O_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS, SIDES) = range(16)  # fmt: skip


class Shape(NamedTuple):
    """The architecture's numbers, as the compiled code takes them.

    `norm`: 1 for the layer norm, 0 for the root-mean-square one; `placement` as above, 0 for "pre"; `activation` as
    in kernels.py; `qk_norm`: 1 over each head, 2 over all; `half` of a head's rotated coordinates.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    eps: float
    scale: float
    norm: int
    placement: int
    activation: int
    gated: int
    qk_norm: int
    half: int
    cap: float
    embed_scale: float


class Model(NamedTuple):
    """What does not change. `sides` [layers + 1][SIDES]: addresses of vectors padded to 32 with zeros, 0 for none.

    `angles` [tables][positions][2][half]; for each layer `windows` and which table `turned` it (-1: none); `slopes` of
    the heads; `places`: the address of learned positions [positions][columns of x], 0 for none.
    """

    table: Ints
    sides: Ints
    angles: FloatArray
    windows: Ints
    turned: Ints
    slopes: FloatArray
    places: int


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
    branch: FloatArray
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
def _embed_phase(s: Any, model: Any, r: Any, w: Any, sync: Any, phase: int) -> None:
    """x = the embedding of each row's token, plus its position's where positions are learned."""
    i, step = _claim(sync, phase, 1), 4 * w.x.shape[1]
    while i < len(r.ids):
        kernels.embed(model.table[EMBED], r.ids[i], s.dim, np.float32(s.embed_scale), w.x, i)
        if model.places:
            _add_row(kernels.address(w.x, 0) + i * step, model.places + r.positions[i] * step, w.x.shape[1])
        i = _claim(sync, phase, 1)


@kernel
def _add_row(target: int, source: int, columns: int) -> None:
    for k in range(0, 4 * columns, 4 * simd.LANES):
        simd.store(target + k, simd.add(simd.load(target + k), simd.load(source + k)))


@kernel
def _norm_phase(s: Any, side: Any, which: int, out: Any, w: Any, rows: Any, count: int, sync: Any, phase: int) -> None:
    """out = norm `which` of `count` rows of x, and their sums; `rows[i]` is the source of row i."""
    i, step = _claim(sync, phase, 1), 4 * w.x.shape[1]
    while i < count:
        start, target = kernels.address(w.x, 0) + rows[i] * step, kernels.address(out, 0) + i * step
        kernels.normalise(s.norm, start, side[which], side[which + 1], s.dim, s.eps, target)
        kernels.sum_groups(out, i, w.sums)
        i = _claim(sync, phase, 1)


@kernel
def _branch_phase(s: Any, side: Any, which: int, w: Any, count: int, sync: Any, phase: int) -> None:
    """Adds the norm of `branch` to x; in the original Transformer x is the norm of their sum."""
    i, step = _claim(sync, phase, 1), 4 * w.x.shape[1]
    while i < count:
        x, branch = kernels.address(w.x, 0) + i * step, kernels.address(w.branch, 0) + i * step
        if s.placement == POST:
            _add_row(branch, x, w.x.shape[1])
            kernels.normalise(s.norm, branch, side[which], side[which + 1], s.dim, s.eps, x)
        else:
            kernels.normalise(s.norm, branch, side[which], side[which + 1], s.dim, s.eps, branch)
            _add_row(x, branch, w.x.shape[1])
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
    """Biases, norms and rotations of queries and keys; keys and values go into the caches."""
    wide, side, table = (s.head_dim + 31) // 32 * 32, model.sides[layer], model.turned[layer]
    key, value = m[0, BLOCKS] * BLOCK, (m[0, BLOCKS] + m[1, BLOCKS]) * BLOCK
    size, scale = BLOCK * (s.head_dim + wide), np.float32(s.scale)
    i = _claim(sync, phase, 1)
    while i < len(r.ids):
        position, x = r.positions[i], w.qkv[i]
        if side[QKV_BIAS]:
            _add_row(x.ctypes.data, side[QKV_BIAS], len(x))
        _norm_heads(s, side[Q_NORM], x, 0, s.heads)
        _norm_heads(s, side[K_NORM], x, key, s.kv_heads)
        for h in range(s.heads):
            if table >= 0:
                kernels.turn(x, h * s.head_dim, s.half, model.angles[table, position])
        for k in range(s.heads * s.head_dim):
            x[k] *= scale
        for h in range(s.kv_heads):
            if table >= 0:
                kernels.turn(x, key + h * s.head_dim, s.half, model.angles[table, position])
            place = simd.floats(r.blocks[i, position // BLOCK] + 4 * size * (layer * s.kv_heads + h), size)
            kernels.remember(x, key + h * s.head_dim, value + h * s.head_dim, s.head_dim, place, position % BLOCK)
        i = _claim(sync, phase, 1)


@kernel
def _norm_heads(s: Any, weight: int, x: Any, column: int, heads: int) -> None:
    """The norm of each head, with its own weights, or of all heads together; nothing without weights."""
    if weight:
        groups, size = (1, heads * s.head_dim) if s.qk_norm == 2 else (heads, s.head_dim)
        for h in range(groups):
            _norm_in_place(s, x, column + h * size, size, simd.floats(weight + 4 * h * size, size))


@kernel
def _norm_in_place(s: Any, x: Any, first: int, size: int, weight: Any) -> None:
    mean, squares = np.float32(0), np.float32(0)
    if s.norm:
        for k in range(size):
            mean += x[first + k]
        mean /= np.float32(size)
    for k in range(size):
        x[first + k] -= mean
        squares += x[first + k] * x[first + k]
    factor = np.float32(1 / np.sqrt(squares / np.float32(size) + np.float32(s.eps)))
    for k in range(size):
        x[first + k] *= factor * weight[k]


@kernel
def _attention_phase(s: Any, model: Any, r: Any, w: Any, layer: int, tid: int, sync: Any, phase: int) -> None:
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
                model.windows[layer], np.float32(s.cap), model.slopes, w.scores[tid], w.out[tid], w.mixed,
            )  # fmt: skip
        i = _claim(sync, phase, 1)


@kernel
def _out_phase(
    s: Any, m: Any, bias: int, x: Any, w: Any, count: int, panel: int, tile: int, threads: int, sync: Any, phase: int
) -> None:  # fmt: skip
    """Matrix m times x plus bias: added to the residual stream, or put into `branch` where a norm comes first."""
    grain, apart = _grain(m[BLOCKS], threads), 0 < s.placement < PARALLEL
    first = _claim(sync, phase, grain)
    while first < m[BLOCKS]:
        for block in range(first, min(m[BLOCKS], first + grain)):
            kernels.project(m, block, x, w.sums, count, panel, tile)
            kernels.add_to(tile, bias + 4 * BLOCK * block if bias else 0, count)
            if apart:
                kernels.put(tile, w.branch, block * BLOCK, count)
            else:
                kernels.accumulate(tile, w.x, block * BLOCK, count)
        first = _claim(sync, phase, grain)


@kernel
def _gate_phase(
    s: Any, m: Any, side: Any, x: Any, w: Any, count: int, panel: int, tiles: Any, threads: int, sync: Any, phase: int
) -> None:  # fmt: skip
    """hidden = f(gate) * up, or f(up)."""
    grain = _grain(m[5, BLOCKS], threads)
    gates, ups = tiles[0].ctypes.data, tiles[1].ctypes.data
    first = _claim(sync, phase, grain)
    while first < m[5, BLOCKS]:
        for block in range(first, min(m[5, BLOCKS], first + grain)):
            kernels.project(m[5], block, x, w.sums, count, panel, ups)
            kernels.add_to(ups, side[UP_BIAS] + 4 * BLOCK * block if side[UP_BIAS] else 0, count)
            if s.gated:
                kernels.project(m[4], block, x, w.sums, count, panel, gates)
                kernels.add_to(gates, side[GATE_BIAS] + 4 * BLOCK * block if side[GATE_BIAS] else 0, count)
            kernels.activate(s.activation, gates if s.gated else 0, ups, w.hidden, block * BLOCK, count)
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
def _layer(
    tid: int, threads: int, s: Any, model: Any, r: Any, w: Any, sync: Any, layer: int, every: Any, phase: int
) -> int:  # fmt: skip
    """One layer, for all rows; the next phase's number."""
    count, m, side = len(r.ids), model.table[FIRST + 7 * layer : FIRST + 7 * layer + 7], model.sides[layer]
    panel, tile = w.panel[tid].ctypes.data, w.tiles[tid, 0].ctypes.data
    if s.placement == PARALLEL_TWO:
        _norm_phase(s, side, MIDDLE, w.branch, w, every, count, sync, phase)
        phase = _meet(sync, threads, phase)
    _norm_phase(s, side, NORM, w.normed, w, every, count, sync, phase)
    phase = _meet(sync, threads, phase)
    _qkv_phase(s, m, w, count, panel, tile, threads, sync, phase)
    phase = _meet(sync, threads, phase)
    _turn_phase(s, model, r, w, m, layer, sync, phase)
    phase = _meet(sync, threads, phase)
    _attention_phase(s, model, r, w, layer, tid, sync, phase)
    phase = _meet(sync, threads, phase)
    _sums_phase(w.mixed, w, count, sync, phase)
    phase = _meet(sync, threads, phase)
    _out_phase(s, m[3], side[O_BIAS], w.mixed, w, count, panel, tile, threads, sync, phase)
    phase = _meet(sync, threads, phase)
    inner = w.normed
    if s.placement >= PARALLEL:
        inner = w.normed if s.placement == PARALLEL else w.branch
        _sums_phase(inner, w, count, sync, phase)
    else:
        if s.placement:
            _branch_phase(s, side, ATTENTION_OUT, w, count, sync, phase)
            phase = _meet(sync, threads, phase)
        _norm_phase(s, side, MIDDLE, w.normed, w, every, count, sync, phase)
    phase = _meet(sync, threads, phase)
    _gate_phase(s, m, side, inner, w, count, panel, w.tiles[tid], threads, sync, phase)
    phase = _meet(sync, threads, phase)
    _sums_phase(w.hidden, w, count, sync, phase)
    phase = _meet(sync, threads, phase)
    _out_phase(s, m[6], side[DOWN_BIAS], w.hidden, w, count, panel, tile, threads, sync, phase)
    phase = _meet(sync, threads, phase)
    if 0 < s.placement < PARALLEL:
        _branch_phase(s, side, MLP_OUT, w, count, sync, phase)
        phase = _meet(sync, threads, phase)
    return phase


@kernel
def forward(tid: int, threads: int, s: Any, model: Any, r: Any, w: Any, sync: Any) -> None:
    """The whole network for the rows `r`, as thread `tid` of `threads`. `sync` holds zeros at the start."""
    every = np.arange(len(r.ids))
    panel, tile = w.panel[tid].ctypes.data, w.tiles[tid, 0].ctypes.data
    _embed_phase(s, model, r, w, sync, 0)
    phase = _meet(sync, threads, 0)
    for layer in range(s.layers):
        phase = _layer(tid, threads, s, model, r, w, sync, layer, every, phase)
    if len(r.wanted):
        _norm_phase(s, model.sides[s.layers], NORM, w.normed, w, r.wanted, len(r.wanted), sync, phase)
        phase = _meet(sync, threads, phase)
        _head_phase(model.table[HEAD], w, len(r.wanted), panel, tile, threads, sync, phase)
        phase = _meet(sync, threads, phase)


def counters(layers: int) -> Ints:
    """A zeroed `sync` buffer: the barrier's count, then one claim counter for each phase, a cache line each."""
    return np.zeros(LINE * (PHASES * layers + 8), np.int64)
