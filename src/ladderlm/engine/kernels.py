"""The steps of a decoder on packed weights, each for one thread: compiled by numba, without the GIL.

Matrices are addresses of rows of the table in pack.py. Buffers are addresses of floats whose rows are padded to 32
columns of zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ladderlm.engine import simd
from ladderlm.engine.acts import LINE, tile_size
from ladderlm.engine.dots import FIELDS, WIDE_TILE
from ladderlm.engine.pack import BLOCK_BYTES, CODED, COLS, DATA, QUANTISED, ROUTINE, STORAGE
from ladderlm.engine.products import weight
from ladderlm.engine.simd import BLOCK, LANES, kernel

NEAR = 4096  # bytes ahead: far enough for memory to answer, near enough to stay in the second cache


@kernel
def entry(m: int, column: int) -> Any:
    """A column of the row of the table at address `m`. (Slices of arrays would be counted, by atomic instructions.)"""
    return simd.read_long(m + 8 * column)


@kernel
def taken(m: int, left: int) -> Any:
    """Tokens that one call of `product` takes of the `left`: all where they are floats."""
    return min(left, WIDE_TILE) if entry(m, CODED) else left


@kernel
def product(m: int, block: int, acts: Any, first: int, count: int, out: int) -> None:
    """out [count][32]: rows 32 * block .. 32 * block + 31 of a matrix times `count` tokens from `first` on.

    `out` has room for a whole tile.
    """
    size, cols, routine = entry(m, BLOCK_BYTES), entry(m, COLS), entry(m, ROUTINE)
    data = entry(m, DATA) + block * size
    if not entry(m, CODED):
        simd.invoke(routine, (data, acts.x + 4 * first * cols, cols, count, out, entry(m, STORAGE) - QUANTISED))
        return
    groups = cols // BLOCK
    codes, fields = acts.codes + first * cols, acts.fields + 4 * FIELDS * first * groups
    # Fetched meanwhile: the next block, by the first tile; for a single token, what comes soon.
    ahead = 0 if first else size
    if count == 1:
        ahead = NEAR
    simd.invoke(routine, (data, codes, fields, groups, tile_size(count), out, ahead))


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
def embed(m: int, token: int, dim: int, factor: Any, out: int) -> None:
    """Row `token` of the embedding matrix times `factor`, as `dim` floats at `out`."""
    start, lane = entry(m, DATA) + token // BLOCK * entry(m, BLOCK_BYTES), token % BLOCK
    kind = entry(m, STORAGE) - QUANTISED
    for k in range(dim):
        if kind >= 0:
            value = weight(kind, start, lane, k)
        elif kind == -QUANTISED:
            value = simd.read(start + 4 * (k * BLOCK + lane))
        elif kind == 1 - QUANTISED:
            value = simd.read_half(start + 2 * (k * BLOCK + lane))
        else:
            value = simd.read_brain(start + 2 * (k * BLOCK + lane))
        simd.write(out + 4 * k, value * factor)
