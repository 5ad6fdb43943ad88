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
def add_to(source: int, side: int, rows: int) -> None:
    """Adds the 32 floats at `side` to every row of a [rows][32] tile; nothing if `side` is 0."""
    if side:
        for t in range(rows):
            for half in range(0, 128, 64):
                here = source + 128 * t + half
                simd.store(here, simd.add(simd.load(here), simd.load(side + half)))


@kernel
def _tanh(x: Any) -> Any:
    """1 - 2 / (e^2x + 1): within some 1e-7."""
    one, two = simd.splat(np.float32(1)), simd.splat(np.float32(2))
    below = simd.div(two, simd.add(simd.exp(simd.mul(x, two)), one))
    return simd.add(one, simd.mul(below, simd.splat(np.float32(-1))))


@kernel
def _activated(kind: int, x: Any) -> Any:
    """SiLU (0), GELU (1) by Abramowitz and Stegun 7.1.26 (within 1.5e-7), its tanh form (2), or ReLU (3)."""
    one, minus = simd.splat(np.float32(1)), simd.splat(np.float32(-1))
    if kind == 0:
        return simd.div(x, simd.add(one, simd.exp(simd.mul(x, minus))))
    if kind == 3:
        return simd.maximum(x, simd.splat(np.float32(0)))
    if kind == 2:
        cubed = simd.mul(simd.mul(x, x), x)
        inner = simd.multiply_add(cubed, simd.splat(np.float32(0.044715)), x)
        value = _tanh(simd.mul(inner, simd.splat(np.float32(0.7978845608028654))))
        return simd.mul(simd.mul(x, simd.splat(np.float32(0.5))), simd.add(one, value))
    z = simd.mul(simd.maximum(x, simd.mul(x, minus)), simd.splat(np.float32(0.7071067811865476)))
    t = simd.div(one, simd.multiply_add(z, simd.splat(np.float32(0.3275911)), one))
    total = simd.splat(np.float32(1.061405429))
    total = simd.multiply_add(total, t, simd.splat(np.float32(-1.453152027)))
    total = simd.multiply_add(total, t, simd.splat(np.float32(1.421413741)))
    total = simd.multiply_add(total, t, simd.splat(np.float32(-0.284496736)))
    total = simd.multiply_add(total, t, simd.splat(np.float32(0.254829592)))
    tail = simd.mul(simd.mul(total, t), simd.exp(simd.mul(simd.mul(z, z), minus)))  # 1 - erf(z)
    # x * (1 + erf) / 2 is relu(x) - |x| * tail / 2: no difference of near numbers on either side.
    size = simd.maximum(x, simd.mul(x, minus))
    over = simd.maximum(x, simd.splat(np.float32(0)))
    return simd.multiply_add(simd.mul(size, simd.splat(np.float32(-0.5))), tail, over)


@kernel
def activate(kind: int, gates: int, ups: int, target: Any, column: int, rows: int) -> None:
    """f(gate) * up of two [rows][32] tiles into columns of `target`; f(up) where `gates` is 0."""
    for t in range(rows):
        here = address(target, t * target.shape[1] + column)
        for half in range(0, 128, 64):
            up = simd.load(ups + 128 * t + half)
            if gates:
                up = simd.mul(_activated(kind, simd.load(gates + 128 * t + half)), up)
            else:
                up = _activated(kind, up)
            simd.store(here + half, up)


@kernel
def sum_groups(x: Any, row: int, sums: Any) -> None:
    """sums[row, g]: sum of columns 32 g .. 32 g + 31 of x[row]."""
    for g in range(x.shape[1] // 32):
        here = address(x, row * x.shape[1] + 32 * g)
        sums[row, g] = simd.total(simd.add(simd.load(here), simd.load(here + 64)))


@kernel
def normalise(layer: int, start: int, weight: int, bias: int, dim: int, eps: Any, target: int) -> None:
    """The root-mean-square norm, or with `layer` the layer norm, of the `dim` floats at `start`, into `target`.

    Weights and bias are padded with zeros to 16; so is the result. Without weight it is a copy.
    """
    whole, mean = dim // LANES * LANES, np.float32(0)
    if layer and weight:
        summed = simd.splat(np.float32(0))
        for i in range(0, whole, LANES):
            summed = simd.add(summed, simd.load(start + 4 * i))
        mean = simd.total(summed)
        for i in range(whole, dim):
            mean += simd.read(start + 4 * i)
        mean /= np.float32(dim)
    less, squares = simd.splat(-mean), simd.splat(np.float32(0))
    for i in range(0, whole, LANES):
        v = simd.add(simd.load(start + 4 * i), less)
        squares = simd.multiply_add(v, v, squares)
    total = simd.total(squares)
    for i in range(whole, dim):
        v = simd.read(start + 4 * i) - mean
        total += v * v
    factor = simd.splat(np.float32(1.0 / np.sqrt(total / dim + eps)))
    for i in range(0, (dim + LANES - 1) // LANES * LANES, LANES):
        v = simd.load(start + 4 * i)
        if weight:
            v = simd.mul(simd.mul(simd.add(v, less), factor), simd.load(weight + 4 * i))
            if bias:
                v = simd.add(v, simd.load(bias + 4 * i))
        simd.store(target + 4 * i, v)


@kernel
def embed(m: Any, token: int, dim: int, factor: Any, out: Any, row: int) -> None:
    """out[row] = row `token` of the embedding matrix times `factor`: found in the lane of its block."""
    block, lane = token // BLOCK, token % BLOCK
    panel = np.empty(CHUNK * BLOCK, np.float32)
    for first in range(0, m[COLS], CHUNK):
        count = min(CHUNK, m[COLS] - first)
        unpack_panel(m, block, first, count, panel.ctypes.data)
        for k in range(min(count, dim - first)):
            g = (first + k) // m[GROUP]
            scale = m[SCALE] + block * m[SCALE_BLOCK] + g * m[SCALE_STEP] + 4 * lane
            low = m[LOW] + block * m[LOW_BLOCK] + g * m[LOW_STEP] + 4 * lane
            out[row, first + k] = (panel[k * BLOCK + lane] * simd.read(scale) + simd.read(low)) * factor


# --- Attention ----------------------------------------------------------------------------------------------------
# A cache block holds 32 positions of one sequence: for each layer and key head, keys [head_dim][32] and then values
# [32][head_dim padded to 32]. `blocks` is the sequence's list of block addresses; `base` the offset of layer and head.


@kernel
def turn(x: Any, column: int, half: int, angles: Any) -> None:
    """Rotates x[column : column + 2 * half] by the position's angles [2][half] (cosines, sines)."""
    for i in range(half):
        a, b, c, s = x[column + i], x[column + half + i], angles[0, i], angles[1, i]
        x[column + i] = a * c - b * s
        x[column + half + i] = b * c + a * s


@kernel
def remember(x: Any, key: int, value: int, head_dim: int, place: Any, slot: int) -> None:
    """Stores a key and a value, found at columns of x, in `place` (the layer and head's part of a block)."""
    wide = (head_dim + 31) // 32 * 32
    for i in range(head_dim):
        place[i * BLOCK + slot] = x[key + i]
        place[head_dim * BLOCK + slot * wide + i] = x[value + i]


@kernel
def _scores(
    query: int, step: int, tokens: int, blocks: Any, begin: int, used: int, base: int, head_dim: int, scores: Any
) -> None:  # fmt: skip
    out_step = 4 * scores.shape[1]
    for b in range(begin, used):
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
def _cap(scores: Any, begin: int, end: int, cap: Any) -> None:
    """cap * tanh(score / cap)."""
    factor, back = simd.splat(np.float32(1) / cap), simd.splat(cap)
    for i in range(begin, end, LANES):
        here = scores.ctypes.data + 4 * i
        simd.store(here, simd.mul(_tanh(simd.mul(simd.load(here), factor)), back))


@kernel
def _softmax(scores: Any, begin: int, used: int, low: int, position: int, slope: Any) -> Any:
    """Turns scores of positions low .. position into e^(score - max), others into 0; 1 over their sum.

    `slope` times the distance is taken off first. Blocks `begin` .. `used` - 1 are looked at.
    """
    for i in range(position + 1, used * BLOCK):
        scores[i] = np.float32(-np.inf)
    for i in range(begin * BLOCK, low):
        scores[i] = np.float32(-np.inf)
    if slope != 0:
        for i in range(low, position + 1):
            scores[i] -= slope * np.float32(position - i)
    start, summed = scores.ctypes.data, simd.splat(np.float32(0))
    top = simd.load(start + 4 * begin * BLOCK)
    for i in range(begin * BLOCK, used * BLOCK, LANES):
        top = simd.maximum(top, simd.load(start + 4 * i))
    minus = simd.splat(np.float32(-simd.largest(top)))
    for i in range(begin * BLOCK, used * BLOCK, LANES):
        e = simd.exp(simd.add(simd.load(start + 4 * i), minus))
        simd.store(start + 4 * i, e)
        summed = simd.add(summed, e)
    return np.float32(1) / simd.total(summed)


@kernel
def _mix(tokens: int, blocks: Any, begin: int, used: int, base: int, wide: int, scores: Any, out: Any) -> None:
    """out[t] = sum over positions of scores[t] times the values."""
    out_step, step = 4 * out.shape[1], 4 * scores.shape[1]
    out[:tokens, :wide] = 0
    for b in range(begin, used):
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
    window: int, cap: Any, slopes: Any, scores: Any, mixed: Any, out: Any,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive rows of one sequence, or of `heads` heads of one row, that share keys.

    A row sees `window` positions (0: all); scores are capped at `cap` (0: not) and fall by `slopes[head]` with
    distance. Either count may be above one, not both. Queries are rotated and scaled already; head h's stand at columns
    h * head_dim of `qkv`, and its result goes to the same columns of `out`.
    """
    wide, count = (head_dim + 31) // 32 * 32, max(rows, heads)
    step = 4 * (qkv.shape[1] if heads == 1 else head_dim)
    done = 0
    while done < count:
        tokens = width(count - done)
        first = address(qkv, row * qkv.shape[1] + head * head_dim) + done * step
        last = positions[row + (done + tokens - 1 if heads == 1 else 0)]
        used, oldest = last // BLOCK + 1, positions[row + (done if heads == 1 else 0)]
        begin = max(0, oldest - window + 1) // BLOCK if window else 0
        _scores(first, step, tokens, blocks, begin, used, base, head_dim, scores)
        for t in range(tokens):
            position = positions[row + (done + t if heads == 1 else 0)]
            low = max(0, position - window + 1) if window else 0
            if cap != 0:
                _cap(scores[t], begin * BLOCK, used * BLOCK, cap)
            slope = slopes[head + (0 if heads == 1 else done + t)]
            mixed[t, wide] = _softmax(scores[t], begin, used, low, position, slope)
        _mix(tokens, blocks, begin, used, base + 4 * BLOCK * head_dim, wide, scores, mixed)
        for t in range(tokens):
            target = row + (done + t if heads == 1 else 0)
            column = (head + (0 if heads == 1 else done + t)) * head_dim
            for i in range(head_dim):
                out[target, column + i] = mixed[t, i] * mixed[t, wide]
        done += tokens
