"""The products of every storage, and the tiles of attention, as routines: each is compiled where a model needs it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ladderlm.engine import dots, simd
from ladderlm.engine.simd import BLOCK, LANES, WIDE, Routine, kernel
from ladderlm.engine.tiles import CHUNK, tile

LINE = 128  # bytes of a row of a tile
_FORMATS = np.array([(f.bits, f.group, f.scale_bytes, f.low, f.bytes) for f in dots.FORMATS], np.int64)


@kernel
def width(left: int) -> Any:
    """Tokens in the next tile of floats when `left` remain."""
    if WIDE and left >= 8:
        return 8
    if WIDE and left >= 4:
        return 4
    return 2 if left >= 2 else 1


@kernel
def weight(kind: int, start: int, lane: int, k: int) -> Any:
    """Weight k of row `lane` of the quantised block at `start`: see dots.Format."""
    bits, group, scale_bytes, low, size = _FORMATS[kind]
    here, within = start + k // BLOCK * size, k % BLOCK
    step, half = within // 4, lane // LANES
    inner = lane % LANES * 4 + within % 4
    if bits == 8:
        code = simd.byte(here + half * 512 + step * 64 + inner)
    else:
        code = simd.byte(here + half * 256 + step // 2 * 64 + inner) >> (4 * (step % 2)) & 15
    side = here + BLOCK * BLOCK * bits // 8 + (within // group * BLOCK + lane) * scale_bytes
    sides = BLOCK * scale_bytes * (BLOCK // group)
    zero = 0 if low else (8 if bits == 4 else 128)
    scale = simd.read(side) if scale_bytes == 4 else simd.read_half(side)
    value = np.float32(code - zero) * scale
    if low:
        value += simd.read(side + sides) if scale_bytes == 4 else simd.read_half(side + sides)
    return value


def _f32(data: int, x: int, cols: int, count: int, out: int, kind: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens, here = width(count - t), x + 4 * (t * cols + k)
            tile(0, tokens, int(k == 0), data + 128 * k, 128, here, 4 * cols, n, out + LINE * t, LINE, 0)
            t += tokens


def _f16(data: int, x: int, cols: int, count: int, out: int, kind: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens, here = width(count - t), x + 4 * (t * cols + k)
            tile(1, tokens, int(k == 0), data + 64 * k, 64, here, 4 * cols, n, out + LINE * t, LINE, 0)
            t += tokens


def _bf16(data: int, x: int, cols: int, count: int, out: int, kind: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens, here = width(count - t), x + 4 * (t * cols + k)
            tile(2, tokens, int(k == 0), data + 64 * k, 64, here, 4 * cols, n, out + LINE * t, LINE, 0)
            t += tokens


def _exact(data: int, x: int, cols: int, count: int, out: int, kind: int) -> None:
    """Of any quantised weights with floats."""
    panel = np.empty(CHUNK * 32, np.float32)
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        for i in range(n):
            for lane in range(32):
                panel[32 * i + lane] = weight(kind, data, lane, k + i)
        while t < count:
            tokens, here = width(count - t), x + 4 * (t * cols + k)
            tile(0, tokens, int(k == 0), panel.ctypes.data, 128, here, 4 * cols, n, out + LINE * t, LINE, 0)
            t += tokens


def _q8(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(0, tokens, data, x, side, groups, out, ahead)


def _q4(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(1, tokens, data, x, side, groups, out, ahead)


def _q4_low(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(2, tokens, data, x, side, groups, out, ahead)


def _q4_low_f32(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(3, tokens, data, x, side, groups, out, ahead)


def _q8_low_f32(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(4, tokens, data, x, side, groups, out, ahead)


def _q8_16(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(5, tokens, data, x, side, groups, out, ahead)


def _q4_low_16(data: int, x: int, side: int, groups: int, tokens: int, out: int, ahead: int) -> None:
    dots.product(6, tokens, data, x, side, groups, out, ahead)


# By pack.STORAGE. Of floats they take (data, x, cols, count, out, kind); of codes (data, codes, fields, groups,
# tokens, out, ahead).
PRODUCTS = tuple(
    Routine(f) for f in (_f32, _f16, _bf16, _q8, _q4, _q4_low, _q4_low_f32, _q8_low_f32, _q8_16, _q4_low_16)
)
EXACT = Routine(_exact)


def _tile_f32(
    tokens: int, replace: int, rows: int, row_step: int, x: int, x_step: int, n: int, out: int, out_step: int,
    ahead: int,
) -> None:  # fmt: skip
    tile(0, tokens, replace, rows, row_step, x, x_step, n, out, out_step, ahead)


def _tile_f16(
    tokens: int, replace: int, rows: int, row_step: int, x: int, x_step: int, n: int, out: int, out_step: int,
    ahead: int,
) -> None:  # fmt: skip
    tile(1, tokens, replace, rows, row_step, x, x_step, n, out, out_step, ahead)


def _tile_i8(
    tokens: int, replace: int, rows: int, row_step: int, x: int, x_step: int, n: int, out: int, out_step: int,
    ahead: int,
) -> None:  # fmt: skip
    tile(3, tokens, replace, rows, row_step, x, x_step, n, out, out_step, ahead)


TILES = (Routine(_tile_f32), Routine(_tile_f16), Routine(_tile_i8))  # of attention, by the kind of the cache
