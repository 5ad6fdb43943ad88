"""Attention of rows to the blocks of their sequence's cache, for one thread.

A cache block holds 32 positions of one sequence: for each layer and key head a part with keys [head_dim][32] and then
values [32][head_dim padded to 32], in float32 or float16; or both in int8 with a scale for each 32 numbers of a
position (acts.quantise_heads). `blocks` is the sequence's list of block addresses; `base` the offset of layer and head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ladderlm.engine import simd
from ladderlm.engine.acts import KEY_BYTES, LINE, Acts, quantise_heads, quantise_tile, tile_size
from ladderlm.engine.dots import WIDE_TILE
from ladderlm.engine.kernels import put, tanh
from ladderlm.engine.products import PRODUCTS, TILES, width
from ladderlm.engine.simd import BLOCK, LANES, WIDE, kernel
from ladderlm.engine.tiles import STORAGES

KINDS = ("float32", "float16", "int8")  # of keys and values
EIGHT = KINDS.index("int8")
AHEAD = 2  # blocks: what memory needs to answer


class Kept(NamedTuple):
    """How keys and values are kept: `kind` of KINDS, the `bytes` of a layer and head's part of a block, of which
    `key_bytes` are keys, and the routines for their products: of floats, and where they are codes."""

    kind: int
    bytes: int
    key_bytes: int
    tile: int
    product: int


def kept(kind: int, head_dim: int) -> Kept:
    wide = -(-head_dim // BLOCK) * BLOCK
    if kind == EIGHT:
        keys = wide // BLOCK * KEY_BYTES
        return Kept(kind, 2 * keys, keys, TILES[kind].address, PRODUCTS[len(STORAGES)].address)
    size = BLOCK * (2 if kind else 4)
    return Kept(kind, size * (head_dim + wide), size * head_dim, TILES[kind].address, 0)


@kernel
def norm_heads(s: Any, weight: int, x: int, heads: int) -> None:
    """The norm of each head, with its own weights, or of all heads together; nothing without weights."""
    if weight:
        groups, size = (1, heads * s.head_dim) if s.qk_norm == 2 else (heads, s.head_dim)
        for h in range(groups):
            _norm_in_place(s, simd.floats(x + 4 * h * size, size), simd.floats(weight + 4 * h * size, size))


@kernel
def _norm_in_place(s: Any, x: Any, weight: Any) -> None:
    mean, squares, size = np.float32(0), np.float32(0), len(x)
    if s.norm:
        for k in range(size):
            mean += x[k]
        mean /= np.float32(size)
    for k in range(size):
        x[k] -= mean
        squares += x[k] * x[k]
    factor = np.float32(1 / np.sqrt(squares / np.float32(size) + np.float32(s.eps)))
    for k in range(size):
        x[k] *= factor * weight[k]


@kernel
def turn(x: int, half: int, angles: int) -> None:
    """Rotates the 2 * half floats at `x` by the position's angles [2][half] (cosines, sines)."""
    size = 4 * half
    whole = size // 64 * 64
    for i in range(0, whole, 64):
        a, b = simd.load(x + i), simd.load(x + size + i)
        c, s = simd.load(angles + i), simd.load(angles + size + i)
        minus = simd.mul(simd.mul(b, s), simd.splat(np.float32(-1)))
        simd.store(x + i, simd.add(simd.mul(a, c), minus))
        simd.store(x + size + i, simd.add(simd.mul(b, c), simd.mul(a, s)))
    for i in range(whole, size, 4):
        a, b = simd.read(x + i), simd.read(x + size + i)
        c, s = simd.read(angles + i), simd.read(angles + size + i)
        simd.write(x + i, a * c - b * s)
        simd.write(x + size + i, b * c + a * s)


@kernel
def scale(x: int, count: int, factor: Any) -> None:
    """Multiplies the `count` floats at `x`, and the padding behind them, by `factor`."""
    times = simd.splat(factor)
    for here in range(x, x + 4 * count, 64):
        simd.store(here, simd.mul(simd.load(here), times))


@kernel
def remember(s: Any, keys: int, values: int, place: int, slot: int) -> None:
    """Stores a position's keys and values of all heads at these addresses, from `place` (the layer's parts) on."""
    if s.kept.kind == EIGHT:
        quantise_heads(keys, s.head_dim // BLOCK, place, s.kept.bytes, s.kept.key_bytes, slot, s.kv_heads)
        return
    for h in range(s.kv_heads):
        offset = 4 * h * s.head_dim
        _remember(s.kept.kind, keys + offset, values + offset, s.head_dim, place + h * s.kept.bytes, slot)


@kernel
def _remember(kind: int, key: int, value: int, head_dim: int, place: int, slot: int) -> None:
    """Stores the key and value at these addresses in `place` (the layer and head's part of a block)."""
    wide, size = (head_dim + 31) // 32 * 32, 2 if kind else 4
    values, whole = place + size * (head_dim * BLOCK + slot * wide), head_dim // LANES * LANES
    for i in range(head_dim):
        here = place + size * (i * BLOCK + slot)
        if kind:
            simd.write_half(here, simd.read(key + 4 * i))
        else:
            simd.write(here, simd.read(key + 4 * i))
    for i in range(0, whole, LANES):
        if kind:
            simd.store_half(values + 2 * i, simd.load(value + 4 * i))
        else:
            simd.store(values + 4 * i, simd.load(value + 4 * i))
    for i in range(whole, head_dim):
        if kind:
            simd.write_half(values + 2 * i, simd.read(value + 4 * i))
        else:
            simd.write(values + 4 * i, simd.read(value + 4 * i))


@kernel
def _cap(scores: int, begin: int, end: int, cap: Any) -> None:
    """cap * tanh(score / cap)."""
    factor, back = simd.splat(np.float32(1) / cap), simd.splat(cap)
    for here in range(scores + 4 * begin, scores + 4 * end, 64):
        simd.store(here, simd.mul(tanh(simd.mul(simd.load(here), factor)), back))


@kernel
def _softmax(scores: int, begin: int, used: int, low: int, position: int, slope: Any) -> Any:
    """Turns scores of positions low .. position into e^(score - max), others into 0; 1 over their sum.

    `slope` times the distance is taken off first. Blocks `begin` .. `used` - 1 are looked at.
    """
    if slope != 0:
        for i in range(low, position + 1):
            here = scores + 4 * i
            simd.write(here, simd.read(here) - slope * np.float32(position - i))
    summed, top = simd.splat(np.float32(0)), simd.splat(np.float32(-np.inf))
    for i in range(begin * BLOCK, used * BLOCK, LANES):
        here = scores + 4 * i
        if i < low or i + LANES > position + 1:
            simd.store(here, simd.within(simd.load(here), i, low, position))
        top = simd.maximum(simd.load(here), top)
    minus = simd.splat(np.float32(-simd.largest(top)))
    for here in range(scores + 4 * BLOCK * begin, scores + 4 * BLOCK * used, 64):
        e = simd.exp(simd.add(simd.load(here), minus))
        simd.store(here, e)
        summed = simd.add(summed, e)
    return np.float32(1) / simd.total(summed)


@kernel
def fetch(address: int, count: int) -> None:
    """Asks for `count` bytes: a stranger's keys come from memory, and a row's are too few to be guessed."""
    for here in range(address, address + count, 64):
        simd.prefetch(here)


@kernel
def _scores(
    s: Any, tokens: int, real: int, keys: int, first: int, across: int, own: Any, target: int, step: int, ahead: int
) -> None:  # fmt: skip
    """Products of queries and the keys of a block: `real` rows, `step` bytes apart from `target` on.

    What lies `ahead` bytes further is fetched meanwhile.
    """
    if s.kept.kind == EIGHT:
        simd.invoke(s.kept.product, (keys, own.codes, own.fields, s.head_dim // BLOCK, tile_size(real), own.x, ahead))
        put(own.x, target, step, real)
    else:
        size = 2 * BLOCK if s.kept.kind else 4 * BLOCK
        simd.invoke(s.kept.tile, (tokens, 1, keys, size, first, across, s.head_dim, target, step, ahead))


@kernel
def _mix(s: Any, tokens: int, real: int, seen: int, values: int, p: int, p_step: int, own: Any, target: int, step: int,
         replace: int, ahead: int) -> None:  # fmt: skip
    """Adds the first `seen` values of a block, each times its share, to `real` rows; `replace`: to nothing.

    What lies `ahead` bytes further is fetched meanwhile.
    """
    wide = (s.head_dim + 31) // 32 * 32
    if s.kept.kind == EIGHT:
        for column in range(0, wide, BLOCK):
            scales = values + BLOCK * wide + 2 * column
            low, high = simd.load_half(scales), simd.load_half(scales + 32)
            for t in range(real):
                simd.store(own.x + LINE * t, simd.mul(simd.load(p + t * p_step), low))
                simd.store(own.x + LINE * t + 64, simd.mul(simd.load(p + t * p_step + 64), high))
            simd.invoke(
                s.kept.tile,
                (tokens, replace, values + column, wide, own.x, LINE, seen, target + 4 * column, step, ahead),
            )
        return
    size = 2 if s.kept.kind else 4
    for column in range(0, wide, BLOCK):
        here = target + 4 * column
        simd.invoke(
            s.kept.tile, (tokens, replace, values + size * column, size * wide, p, p_step, seen, here, step, ahead)
        )


@kernel
def attend(
    s: Any, qkv: int, step: int, row: int, rows: int, head: int, heads: int, positions: Any, blocks: int, base: int,
    after: int, after_base: int, window: int, slopes: Any, scores: int, s_step: int, mixed: int,
    m_step: int, scratch: int, out: int, out_step: int,
) -> None:  # fmt: skip
    """Attention of `rows` consecutive rows of one sequence, or of `heads` heads of one row, that share keys.

    A row sees `window` positions (0: all); scores are capped at s.cap (0: not) and fall by `slopes[head]` with
    distance. Either count may be above one, not both. Queries are rotated and scaled already; head h's stand at columns
    h * head_dim of `qkv` (a row every `step` bytes), and its result goes to the same columns of `out`. `blocks` lists
    addresses, as `after` does; each is fetched some blocks before it is used, and in the end those of `after`.
    `scratch` has room for a tile of codes, their fields and 12 rows of 32.
    """
    head_dim, wide, count = s.head_dim, (s.head_dim + 31) // 32 * 32, max(rows, heads)
    across = step if heads == 1 else 4 * head_dim
    codes = scratch + WIDE_TILE * LINE
    own = Acts(scratch, codes, codes + WIDE_TILE * wide, wide, 1, 0)
    done = 0
    while done < count:
        tokens = width(count - done)
        real = tokens
        if WIDE and heads > 1 and tokens < min(8, count - done):  # one tile, some rows of no meaning
            tokens, real = 2 * tokens, count - done
        first = qkv + row * step + 4 * head * head_dim + done * across
        last = positions[row + (done + real - 1 if heads == 1 else 0)]
        used, oldest = last // BLOCK + 1, positions[row + (done if heads == 1 else 0)]
        begin = max(0, oldest - window + 1) // BLOCK if window else 0
        if s.kept.kind == EIGHT:
            quantise_tile(first, across, own, 0, real)
        for b in range(begin, used):
            keys, soon = simd.read_long(blocks + 8 * b) + base, b + AHEAD
            if soon < used:
                soon = simd.read_long(blocks + 8 * soon) + base
            else:
                soon = simd.read_long(blocks + 8 * min(used - 1, begin + soon - used)) + base + s.kept.key_bytes
            _scores(s, tokens, real, keys, first, across, own, scores + LINE * b, s_step, soon - keys)
        for t in range(real):
            position, here = positions[row + (done + t if heads == 1 else 0)], scores + t * s_step
            low = max(0, position - window + 1) if window else 0
            if s.cap != 0:
                _cap(here, begin * BLOCK, used * BLOCK, np.float32(s.cap))
            slope = slopes[head + (0 if heads == 1 else done + t)]
            simd.write(mixed + t * m_step + 4 * wide, _softmax(here, begin, used, low, position, slope))
        for b in range(begin, used):
            values, soon = simd.read_long(blocks + 8 * b) + base + s.kept.key_bytes, b + AHEAD
            if soon < used:
                soon = simd.read_long(blocks + 8 * soon) + base + s.kept.key_bytes
            else:
                soon = simd.read_long(after + 8 * (soon - used)) + after_base
            share, seen = scores + LINE * b, min(BLOCK, last + 1 - b * BLOCK)
            _mix(s, tokens, real, seen, values, share, s_step, own, mixed, m_step, int(b == begin), soon - values)
        for t in range(real):
            target = out + (row + (done + t if heads == 1 else 0)) * out_step
            target += 4 * (head + (0 if heads == 1 else done + t)) * head_dim
            source, whole = mixed + t * m_step, head_dim // LANES * LANES
            share = simd.read(source + 4 * wide)
            times = simd.splat(share)
            for i in range(0, 4 * whole, 64):
                simd.store(target + i, simd.mul(simd.load(source + i), times))
            for i in range(4 * whole, 4 * head_dim, 4):
                simd.write(target + i, simd.read(source + i) * share)
        done += real
