"""The products of every storage, and the tiles of attention, as routines: each is compiled where a model needs it."""

from __future__ import annotations

from typing import Any

from ladderlm.engine import dots
from ladderlm.engine.simd import WIDE, Routine, kernel
from ladderlm.engine.tiles import CHUNK, tile

LINE = 128  # bytes of a row of a tile


@kernel
def width(left: int) -> Any:
    """Tokens in the next tile of floats when `left` remain."""
    if WIDE and left >= 8:
        return 8
    if WIDE and left >= 4:
        return 4
    return 2 if left >= 2 else 1


def _f32(data: int, x: int, cols: int, count: int, out: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens = width(count - t)
            tile(0, tokens, int(k == 0), data + 128 * k, 128, x + 4 * (t * cols + k), 4 * cols, n, out + LINE * t, LINE)
            t += tokens


def _f16(data: int, x: int, cols: int, count: int, out: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens = width(count - t)
            tile(1, tokens, int(k == 0), data + 64 * k, 64, x + 4 * (t * cols + k), 4 * cols, n, out + LINE * t, LINE)
            t += tokens


def _bf16(data: int, x: int, cols: int, count: int, out: int) -> None:
    for k in range(0, cols, CHUNK):
        n, t = min(CHUNK, cols - k), 0
        while t < count:
            tokens = width(count - t)
            tile(2, tokens, int(k == 0), data + 64 * k, 64, x + 4 * (t * cols + k), 4 * cols, n, out + LINE * t, LINE)
            t += tokens


def _q8(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(0, tokens, data, zero, x, side, groups, out)


def _q4(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(1, tokens, data, zero, x, side, groups, out)


def _q4_low(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(2, tokens, data, zero, x, side, groups, out)


def _q4_low_f32(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(3, tokens, data, zero, x, side, groups, out)


def _q8_low_f32(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(4, tokens, data, zero, x, side, groups, out)


def _q8_16(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(5, tokens, data, zero, x, side, groups, out)


def _q4_low_16(data: int, zero: int, x: int, side: int, groups: int, tokens: int, out: int) -> None:
    dots.product(6, tokens, data, zero, x, side, groups, out)


# By pack.STORAGE. Unquantised: (data, x, cols, count, out); quantised: (data, zero, codes, fields, groups, tile, out).
PRODUCTS = tuple(
    Routine(f) for f in (_f32, _f16, _bf16, _q8, _q4, _q4_low, _q4_low_f32, _q8_low_f32, _q8_16, _q4_low_16)
)


def _tile_f32(
    tokens: int, replace: int, rows: int, row_step: int, x: int, x_step: int, n: int, out: int, out_step: int
) -> None:
    tile(0, tokens, replace, rows, row_step, x, x_step, n, out, out_step)


def _tile_f16(
    tokens: int, replace: int, rows: int, row_step: int, x: int, x_step: int, n: int, out: int, out_step: int
) -> None:
    tile(1, tokens, replace, rows, row_step, x, x_step, n, out, out_step)


TILES = (Routine(_tile_f32), Routine(_tile_f16))  # of attention, by the kind of the cache
