"""The steps of a decoder on packed weights, each for one thread: compiled by numba, without the GIL.

Matrices are rows of the table in pack.py. Buffers are float32 arrays whose rows are padded to 32 columns of zeros;
`address(a, i)` is the address of element i of array a.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ladderlm.engine import simd
from ladderlm.engine.pack import (
    COLS,
    DATA,
    DATA_STEP,
    GROUP,
    LOW,
    LOW_BLOCK,
    LOW_STEP,
    SCALE,
    SCALE_BLOCK,
    SCALE_STEP,
    STORAGE,
)  # fmt: skip
from ladderlm.engine.simd import BLOCK, LANES, WIDE, kernel
from ladderlm.engine.tiles import PAIR_BYTES, dot, tile, unpack

CHUNK = 256  # k unpacked at a time: a panel of 32 KB stays in the first cache

_dot_f32, _dot_f16, _dot_bf16, _dot_q8, _dot_q4 = (dot(s) for s in PAIR_BYTES)
_unpack_f32, _unpack_f16, _unpack_bf16, _unpack_q8, _unpack_q4 = (unpack(s) for s in PAIR_BYTES)
_scale_8, _scale_4, _scale_2, _scale_1 = (tile(n, "scale") for n in (8, 4, 2, 1))
_set_8, _set_4, _set_2, _set_1 = (tile(n, "set") for n in (8, 4, 2, 1))
_add_8, _add_4, _add_2, _add_1 = (tile(n, "add") for n in (8, 4, 2, 1))


@kernel
def address(array: Any, index: int) -> Any:
    return array.ctypes.data + 4 * index


@kernel
def width(left: int) -> Any:
    """Tokens in the next register tile when `left` remain."""
    if WIDE and left >= 8:
        return 8
    if WIDE and left >= 4:
        return 4
    return 2 if left >= 2 else 1


@kernel
def _dot(m: Any, block: int, x: int, sums: int, out: int) -> None:
    data, groups = m[DATA] + block * m[DATA_STEP], m[COLS] // m[GROUP]
    scale, low = m[SCALE] + block * m[SCALE_BLOCK], m[LOW] + block * m[LOW_BLOCK]
    kind = m[STORAGE]
    if kind == 4:
        _dot_q4(data, scale, m[SCALE_STEP], low, m[LOW_STEP], m[GROUP], groups, x, sums, out)
    elif kind == 3:
        _dot_q8(data, scale, m[SCALE_STEP], low, m[LOW_STEP], m[GROUP], groups, x, sums, out)
    elif kind == 2:
        _dot_bf16(data, scale, m[SCALE_STEP], low, m[LOW_STEP], m[GROUP], groups, x, sums, out)
    elif kind == 1:
        _dot_f16(data, scale, m[SCALE_STEP], low, m[LOW_STEP], m[GROUP], groups, x, sums, out)
    else:
        _dot_f32(data, scale, m[SCALE_STEP], low, m[LOW_STEP], m[GROUP], groups, x, sums, out)


@kernel
def unpack_panel(m: Any, block: int, first: int, count: int, panel: int) -> None:
    """Weights of 32 rows and `count` columns from `first` on, unscaled, as floats [k][32] at `panel`."""
    data = m[DATA] + block * m[DATA_STEP] + m[DATA_STEP] // m[COLS] * first
    kind = m[STORAGE]
    if kind == 4:
        _unpack_q4(data, count // 2, panel)
    elif kind == 3:
        _unpack_q8(data, count // 2, panel)
    elif kind == 2:
        _unpack_bf16(data, count // 2, panel)
    elif kind == 1:
        _unpack_f16(data, count // 2, panel)
    else:
        _unpack_f32(data, count // 2, panel)


@kernel
def _panel_times(
    m: Any, block: int, first: int, count: int, panel: int, x: Any, sums: Any, rows: int, out: int
) -> None:
    """Adds columns first .. first + count of a block times `rows` tokens to `out` [rows][32]."""
    group, x_step, s_step = m[GROUP], 4 * x.shape[1], 4 * sums.shape[1]
    scales = m[SCALE] + block * m[SCALE_BLOCK] + first // group * m[SCALE_STEP]
    lows = m[LOW] + block * m[LOW_BLOCK] + first // group * m[LOW_STEP]
    t = 0
    while t < rows:
        step, target = width(rows - t), out + 128 * t
        for g in range(count // group):
            k = first + g * group
            a, b, s = panel + 128 * group * g, address(x, 0) + t * x_step + 4 * k, address(sums, k // 32) + t * s_step
            scale, low = scales + g * m[SCALE_STEP], lows + g * m[LOW_STEP]
            if step == 8:
                _scale_8(a, 128, b, x_step, group, target, 128, scale, low, s, s_step)
            elif step == 4:
                _scale_4(a, 128, b, x_step, group, target, 128, scale, low, s, s_step)
            elif step == 2:
                _scale_2(a, 128, b, x_step, group, target, 128, scale, low, s, s_step)
            else:
                _scale_1(a, 128, b, x_step, group, target, 128, scale, low, s, s_step)
        t += step


@kernel
def project(m: Any, block: int, x: Any, sums: Any, rows: int, panel: int, out: int) -> None:
    """out [rows][32]: rows 32 * block .. 32 * block + 31 of a matrix times the first `rows` rows of x."""
    if rows == 1:
        _dot(m, block, address(x, 0), address(sums, 0), out)
        return
    zero = simd.splat(np.float32(0))
    for i in range(2 * rows):
        simd.store(out + 64 * i, zero)
    for first in range(0, m[COLS], CHUNK):
        count = min(CHUNK, m[COLS] - first)
        unpack_panel(m, block, first, count, panel)
        _panel_times(m, block, first, count, panel, x, sums, rows, out)


@kernel
def put(source: int, target: Any, column: int, rows: int) -> None:
    """Writes a [rows][32] tile into columns of `target`."""
    for t in range(rows):
        here = address(target, t * target.shape[1] + column)
        simd.store(here, simd.load(source + 128 * t))
        simd.store(here + 64, simd.load(source + 128 * t + 64))


@kernel
def accumulate(source: int, target: Any, column: int, rows: int) -> None:
    """Adds a [rows][32] tile to columns of `target`."""
    for t in range(rows):
        here = address(target, t * target.shape[1] + column)
        for half in range(0, 128, 64):
            simd.store(here + half, simd.add(simd.load(here + half), simd.load(source + 128 * t + half)))


@kernel
def gate(gates: int, ups: int, target: Any, column: int, rows: int) -> None:
    """silu(gate) * up of two [rows][32] tiles into columns of `target`."""
    one, minus = simd.splat(np.float32(1)), simd.splat(np.float32(-1))
    for t in range(rows):
        here = address(target, t * target.shape[1] + column)
        for half in range(0, 128, 64):
            g = simd.load(gates + 128 * t + half)
            sigmoid = simd.div(one, simd.add(one, simd.exp(simd.mul(g, minus))))
            simd.store(here + half, simd.mul(simd.mul(g, sigmoid), simd.load(ups + 128 * t + half)))


@kernel
def sum_groups(x: Any, row: int, sums: Any) -> None:
    """sums[row, g]: sum of columns 32 g .. 32 g + 31 of x[row]."""
    for g in range(x.shape[1] // 32):
        here = address(x, row * x.shape[1] + 32 * g)
        sums[row, g] = simd.total(simd.add(simd.load(here), simd.load(here + 64)))


@kernel
def normalise(x: Any, source: int, weight: Any, dim: int, eps: Any, out: Any, row: int) -> None:
    """out[row] = weight * x[source] / rms(x[source]), over `dim` columns (the padding beyond is zero)."""
    squares = simd.splat(np.float32(0))
    start, target = address(x, source * x.shape[1]), address(out, row * out.shape[1])
    for i in range(0, x.shape[1], LANES):
        v = simd.load(start + 4 * i)
        squares = simd.multiply_add(v, v, squares)
    factor = simd.splat(np.float32(1.0 / np.sqrt(simd.total(squares) / dim + eps)))
    for i in range(0, x.shape[1], LANES):
        scaled = simd.mul(simd.load(start + 4 * i), factor)
        simd.store(target + 4 * i, simd.mul(scaled, simd.load(address(weight, i))))


@kernel
def embed(m: Any, token: int, dim: int, out: Any, row: int) -> None:
    """out[row] = row `token` of the embedding matrix: found in the lane of its block."""
    block, lane = token // BLOCK, token % BLOCK
    panel = np.empty(CHUNK * BLOCK, np.float32)
    for first in range(0, m[COLS], CHUNK):
        count = min(CHUNK, m[COLS] - first)
        unpack_panel(m, block, first, count, panel.ctypes.data)
        for k in range(min(count, dim - first)):
            g = (first + k) // m[GROUP]
            scale = m[SCALE] + block * m[SCALE_BLOCK] + g * m[SCALE_STEP] + 4 * lane
            low = m[LOW] + block * m[LOW_BLOCK] + g * m[LOW_STEP] + 4 * lane
            out[row, first + k] = panel[k * BLOCK + lane] * simd.read(scale) + simd.read(low)


# --- Attention ----------------------------------------------------------------------------------------------------
# A cache block holds 32 positions of one sequence: for each layer and key head, keys [head_dim][32] and then values
# [32][head_dim padded to 32]. `blocks` is the sequence's list of block addresses; `base` the offset of layer and head.


@kernel
def turn(x: Any, column: int, half: int, angles: Any, factor: Any) -> None:
    """Rotates x[column : column + 2 * half] by the position's angles [2][half] (cosines, sines), times `factor`."""
    for i in range(half):
        a, b, c, s = x[column + i], x[column + half + i], angles[0, i], angles[1, i]
        x[column + i] = (a * c - b * s) * factor
        x[column + half + i] = (b * c + a * s) * factor


@kernel
def remember(x: Any, key: int, value: int, head_dim: int, place: Any, slot: int) -> None:
    """Stores a key and a value, found at columns of x, in `place` (the layer and head's part of a block)."""
    wide = (head_dim + 31) // 32 * 32
    for i in range(head_dim):
        place[i * BLOCK + slot] = x[key + i]
        place[head_dim * BLOCK + slot * wide + i] = x[value + i]


@kernel
def _scores(query: int, step: int, tokens: int, blocks: Any, used: int, base: int, head_dim: int, scores: Any) -> None:
    out_step = 4 * scores.shape[1]
    for b in range(used):
        keys, out = blocks[b] + base, address(scores, b * BLOCK)
        if tokens == 8:
            _set_8(keys, 128, query, step, head_dim, out, out_step, 0, 0, 0, 0)
        elif tokens == 4:
            _set_4(keys, 128, query, step, head_dim, out, out_step, 0, 0, 0, 0)
        elif tokens == 2:
            _set_2(keys, 128, query, step, head_dim, out, out_step, 0, 0, 0, 0)
        else:
            _set_1(keys, 128, query, step, head_dim, out, out_step, 0, 0, 0, 0)


@kernel
def _softmax(scores: Any, used: int, position: int) -> Any:
    """Turns scores of positions 0 .. position into e^(score - max), later ones into 0; 1 over their sum."""
    for i in range(position + 1, used * BLOCK):
        scores[i] = np.float32(-np.inf)
    start = scores.ctypes.data
    top, summed = simd.load(start), simd.splat(np.float32(0))
    for i in range(0, used * BLOCK, LANES):
        top = simd.maximum(top, simd.load(start + 4 * i))
    minus = simd.splat(np.float32(-simd.largest(top)))
    for i in range(0, used * BLOCK, LANES):
        e = simd.exp(simd.add(simd.load(start + 4 * i), minus))
        simd.store(start + 4 * i, e)
        summed = simd.add(summed, e)
    return np.float32(1) / simd.total(summed)


@kernel
def _mix(tokens: int, blocks: Any, used: int, base: int, wide: int, scores: Any, out: Any) -> None:
    """out[t] = sum over positions of scores[t] times the values."""
    out_step, step = 4 * out.shape[1], 4 * scores.shape[1]
    out[:tokens, :wide] = 0
    for b in range(used):
        p = address(scores, b * BLOCK)
        for column in range(0, wide, 32):
            values, target = blocks[b] + base + 4 * column, address(out, column)
            if tokens == 8:
                _add_8(values, 4 * wide, p, step, BLOCK, target, out_step, 0, 0, 0, 0)
            elif tokens == 4:
                _add_4(values, 4 * wide, p, step, BLOCK, target, out_step, 0, 0, 0, 0)
            elif tokens == 2:
                _add_2(values, 4 * wide, p, step, BLOCK, target, out_step, 0, 0, 0, 0)
            else:
                _add_1(values, 4 * wide, p, step, BLOCK, target, out_step, 0, 0, 0, 0)


@kernel
def attend(
    qkv: Any, row: int, rows: int, head: int, heads: int, head_dim: int, positions: Any, blocks: Any, base: int,
    scores: Any, mixed: Any, out: Any,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive rows of one sequence, or of `heads` heads of one row, that share keys.

    Either count may be above one, not both. Queries are rotated and scaled already; head h's stand at columns
    h * head_dim of `qkv`, and its result goes to the same columns of `out`.
    """
    wide, count = (head_dim + 31) // 32 * 32, max(rows, heads)
    step = 4 * (qkv.shape[1] if heads == 1 else head_dim)
    done = 0
    while done < count:
        tokens = width(count - done)
        first = address(qkv, row * qkv.shape[1] + head * head_dim) + done * step
        last = positions[row + (done + tokens - 1 if heads == 1 else 0)]
        used = last // BLOCK + 1
        _scores(first, step, tokens, blocks, used, base, head_dim, scores)
        for t in range(tokens):
            mine = row + (done + t if heads == 1 else 0)
            mixed[t, wide] = _softmax(scores[t], used, positions[mine])
        _mix(tokens, blocks, used, base + 4 * BLOCK * head_dim, wide, scores, mixed)
        for t in range(tokens):
            target = row + (done + t if heads == 1 else 0)
            column = (head + (0 if heads == 1 else done + t)) * head_dim
            for i in range(head_dim):
                out[target, column + i] = mixed[t, i] * mixed[t, wide]
        done += tokens
