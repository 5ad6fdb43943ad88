"""The steps of a decoder on packed weights, each for one thread: compiled by numba, without the GIL.

Matrices are rows of the table in pack.py. Buffers are addresses of floats whose rows are padded to 32 columns of zeros.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ladderlm.engine import dots, simd
from ladderlm.engine.pack import BLOCK_BYTES, CODED, COLS, DATA, QUANTISED, ROUTINE, STORAGE
from ladderlm.engine.products import weight
from ladderlm.engine.simd import BLOCK, LANES, WIDE, kernel

LINE = 4 * BLOCK  # bytes of a row of a tile
NEAR = 4096  # bytes ahead: far enough for memory to answer, near enough to stay in the second cache
WIDE_TILE = dots.WIDE_TILE
FIELDS, SUM, ZERO_4, ZERO_8 = dots.FIELDS, dots.SUM, dots.ZERO_4, dots.ZERO_8
HALF_ZERO, HALF_SUM = dots.HALF_ZERO, dots.HALF_SUM


class Acts(NamedTuple):
    """Activations as matrices take them: addresses of floats [rows][cols], and of their codes and fields, tile after
    tile of WIDE_TILE rows (see dots.py). From row `own` on each thread has a tile of its own. `coded` is 0 where no
    matrix takes codes, 2 where one takes sums of 16."""

    x: int
    codes: int
    fields: int
    cols: int
    coded: int
    own: int


@kernel
def address(array: Any, index: int) -> Any:
    return array.ctypes.data + 4 * index


@kernel
def tile_size(left: int) -> Any:
    """Tokens of the tile of codes that holds the next `left`: the last one may hold some more, of no meaning."""
    if left > 8 and WIDE:
        return 12
    if left > 4 and WIDE:
        return 8
    if left > 2:
        return 4
    return 2 if left == 2 else 1


@kernel
def taken(m: Any, left: int) -> Any:
    """Tokens that one call of `product` takes of the `left`: all where they are floats."""
    return min(left, WIDE_TILE) if m[CODED] else left


@kernel
def product(m: Any, block: int, acts: Any, first: int, count: int, out: int) -> None:
    """out [count][32]: rows 32 * block .. 32 * block + 31 of a matrix times `count` tokens from `first` on.

    `out` has room for a whole tile.
    """
    data, cols = m[DATA] + block * m[BLOCK_BYTES], m[COLS]
    if not m[CODED]:
        simd.invoke(m[ROUTINE], (data, acts.x + 4 * first * cols, cols, count, out, m[STORAGE] - QUANTISED))
        return
    groups = cols // BLOCK
    codes, fields = acts.codes + first * cols, acts.fields + 4 * FIELDS * first * groups
    # Fetched meanwhile: the next block, by the first tile; for a single token, what comes soon.
    ahead = 0 if first else m[BLOCK_BYTES]
    if count == 1:
        ahead = NEAR
    simd.invoke(m[ROUTINE], (data, codes, fields, groups, tile_size(count), out, ahead))


@kernel
def quantise(source: int, acts: Any, first: int, tokens: int, token: int, group: int) -> None:
    """Codes of the 32 floats at `source`: group `group` of a token of the tile of `tokens` that begins at `first`.

    The largest becomes 127; sums are kept for what the weights' zeros and minima need.
    """
    groups = acts.cols // BLOCK
    a, b = simd.load(source), simd.load(source + 64)
    top = simd.largest_size(a, b)
    scale, back = top * np.float32(1 / 127), np.float32(0)
    if top != 0:
        back = np.float32(127) / top
    place = acts.codes + first * acts.cols + (group * tokens + token) * BLOCK
    factor, step = simd.splat(back), 4 * groups * tokens
    field = acts.fields + 4 * FIELDS * first * groups + 4 * (group * tokens + token)
    low, total = simd.write_codes(place, simd.mul(a, factor), simd.mul(b, factor), acts.coded)
    simd.write(field, scale)
    simd.write(field + SUM * step, scale * np.float32(total))
    simd.write_int(field + ZERO_4 * step, np.int32(-8 * total))
    simd.write_int(field + ZERO_8 * step, np.int32(-128 * total))
    if acts.coded > 1:
        high = total - low
        simd.write_int(field + HALF_ZERO * step, np.int32(-128 * low))
        simd.write_int(field + (HALF_ZERO + 1) * step, np.int32(-128 * high))
        simd.write(field + HALF_SUM * step, scale * np.float32(low))
        simd.write(field + (HALF_SUM + 1) * step, scale * np.float32(high))


@kernel
def quantise_row(source: int, acts: Any, row: int, count: int) -> None:
    """Codes of the row of floats at `source`, as row `row` of `count`."""
    first = row // WIDE_TILE * WIDE_TILE
    tokens = tile_size(count - first)
    for g in range(acts.cols // BLOCK):
        quantise(source + LINE * g, acts, first, tokens, row - first, g)


@kernel
def put(source: int, target: int, step: int, rows: int) -> None:
    """Writes a [rows][32] tile to `target`, a row every `step` bytes."""
    for t in range(rows):
        here = target + t * step
        simd.store(here, simd.load(source + LINE * t))
        simd.store(here + 64, simd.load(source + LINE * t + 64))


@kernel
def accumulate(source: int, target: int, step: int, rows: int) -> None:
    """Adds a [rows][32] tile to `target`, a row every `step` bytes."""
    for t in range(rows):
        for half in range(0, LINE, 64):
            here = target + t * step + half
            simd.store(here, simd.add(simd.load(here), simd.load(source + LINE * t + half)))


@kernel
def add_to(source: int, side: int, rows: int) -> None:
    """Adds the 32 floats at `side` to every row of a [rows][32] tile; nothing if `side` is 0."""
    if side:
        for t in range(rows):
            for half in range(0, LINE, 64):
                here = source + LINE * t + half
                simd.store(here, simd.add(simd.load(here), simd.load(side + half)))


@kernel
def tanh(x: Any) -> Any:
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
        value = tanh(simd.mul(inner, simd.splat(np.float32(0.7978845608028654))))
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
def activate(kind: int, gates: int, ups: int, rows: int) -> None:
    """f(gate) * up of two [rows][32] tiles, into the second; f(up) where `gates` is 0."""
    for here in range(ups, ups + LINE * rows, 64):
        up = simd.load(here)
        if gates:
            up = simd.mul(_activated(kind, simd.load(gates + here - ups)), up)
        else:
            up = _activated(kind, up)
        simd.store(here, up)


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
def embed(m: Any, token: int, dim: int, factor: Any, out: int) -> None:
    """Row `token` of the embedding matrix times `factor`, as `dim` floats at `out`."""
    start, lane = m[DATA] + token // BLOCK * m[BLOCK_BYTES], token % BLOCK
    kind = m[STORAGE] - QUANTISED
    for k in range(dim):
        if kind >= 0:
            value = weight(kind, start, lane, k)
        elif m[STORAGE] == 0:
            value = simd.read(start + 4 * (k * BLOCK + lane))
        elif m[STORAGE] == 1:
            value = simd.read_half(start + 2 * (k * BLOCK + lane))
        else:
            value = simd.read_brain(start + 2 * (k * BLOCK + lane))
        simd.write(out + 4 * k, value * factor)
