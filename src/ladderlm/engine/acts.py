"""Activations as the integer products take them: codes of 8 bits in groups of 32, and the fields of each group.

Sixteen groups are coded at once, a lane of a vector for each: what is reduced within a group is folded crosswise, and
the fields of all are computed and written together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ladderlm.engine import dots, simd
from ladderlm.engine.dots import FIELDS, HALF_SUM, HALF_ZERO, SCALE, SUM, WIDE_TILE, ZERO_4, ZERO_8
from ladderlm.engine.simd import BLOCK, F32, I8, I32, I64, LANES, VF, VI, WIDE, Codegen, at, broadcast, constant, kernel

LINE = 4 * BLOCK  # bytes of the floats of a group
KEY_BYTES = dots.FORMATS[0].bytes  # of 32 positions' keys, in a group of 32 columns


class Acts(NamedTuple):
    """Addresses of floats [rows][cols], and of their codes and fields, tile after tile of WIDE_TILE rows (see dots.py).

    From row `own` on each thread has a tile of its own. `coded` is 0 where no matrix takes codes, 2 where one takes
    sums of 16.
    """

    x: int
    codes: int
    fields: int
    cols: int
    coded: int
    own: int


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
def quantise(tile: int, acts: Any, first: int, count: int, rows: int, group: int) -> None:
    """Codes of floats [count][32] at `tile`: group `group` of the rows from `first` on, of `rows` in all."""
    done = 0
    while done < count:  # tiles of floats may be larger than those of codes
        begin = (first + done) // WIDE_TILE * WIDE_TILE
        some, tokens = min(count - done, begin + WIDE_TILE - first - done), tile_size(rows - begin)
        _quantise(tile + LINE * done, LINE, 4, some, acts, begin, tokens, group * tokens + first + done - begin)
        done += some


@kernel
def quantise_tile(source: int, step: int, acts: Any, first: int, count: int) -> None:
    """Codes of all columns of the tile that begins at row `first` of `count`; its floats begin at `source`, a row every
    `step` bytes."""
    tokens, groups = tile_size(count - first), acts.cols // BLOCK
    shift, together = 4, 1  # groups that fill a vector
    if tokens < 12:
        shift = (tokens > 1) + (tokens > 2) + (tokens > 4)
        together = LANES >> shift
    for group in range(0, groups, together):
        some = tokens * min(together, groups - group)
        _quantise(source + LINE * group, step, shift, some, acts, first, tokens, group * tokens)


@kernel
def _quantise(source: int, step: int, shift: int, count: int, acts: Any, first: int, tokens: int, place: int) -> None:
    """Codes of `count` runs, at most 16, of 32 floats: number `place` and the following of a tile.

    Run i begins at source + i % 2^shift * step + (i >> shift) * 128. Its largest number becomes 127.
    """
    groups, below = acts.cols // BLOCK, (1 << shift) - 1
    codes = acts.codes + first * acts.cols + place * BLOCK
    tops = _tops(source, step, shift, count - 1)
    factors = _factors(tops)
    for i in range(count):
        start = source + (i & below) * step + (i >> shift) * LINE
        factor = simd.lane(factors, i)
        _write_codes(codes + BLOCK * i, start, factor)
    fields = acts.fields + 4 * FIELDS * first * groups + 4 * place
    _write_fields(codes, tops, count, fields, 4 * groups * tokens, acts.coded)


@kernel
def quantise_heads(source: int, groups: int, place: int, step: int, key_bytes: int, slot: int, kv_heads: int) -> None:
    """Keys and values [2][kv_heads][groups][32] of a position, as codes: each head's in its part of a cache's block.

    A part is `step` bytes: keys as dots.FORMATS[0], then, `key_bytes` on, values [32][groups][32] in int8 and their
    scales [groups][32] in float16.
    """
    runs, size = 2 * kv_heads * groups, KEY_BYTES
    for first in range(0, runs, LANES):
        count = min(LANES, runs - first)
        tops = _tops(source + LINE * first, LINE, 4, count - 1)
        factors = _factors(tops)
        for i in range(count):
            run = first + i
            part, group = place + run // groups % kv_heads * step, run % groups
            floats, factor, scale = source + LINE * run, simd.lane(factors, i), simd.pick(tops, i) * np.float32(1 / 127)
            if run < kv_heads * groups:
                start = part + group * size
                _write_key(start + slot // LANES * (size // 2 - BLOCK) + slot % LANES * 4, floats, factor)
                simd.write_half(start + size - 2 * BLOCK + 2 * slot, scale)
            else:
                start = part + key_bytes
                _write_codes(start + (slot * groups + group) * BLOCK, floats, factor)
                simd.write_half(start + groups * BLOCK * BLOCK + 2 * (group * BLOCK + slot), scale)


# --- Emitting LLVM ------------------------------------------------------------------------------------------------


def _load(builder: Any, address: Any, offset: int, kind: Any, align: int) -> Any:
    return builder.load(at(builder, address, offset, kind), align=align)


def _folded(builder: Any, combine: Callable[[Any, Any], Any], leaf: Callable[[int], Any]) -> Any:
    """One vector: its lane i is all of `leaf(i)`, a vector of 16, combined; 15 steps for what would take 64."""

    def fold(first: int, apart: int) -> Any:
        if apart == LANES:
            return leaf(first)
        a, b = fold(first, 2 * apart), fold(first + apart, 2 * apart)
        # Of each run of 2 * apart lanes a's halves, combined, become the first half, and b's the second.
        in_a = [lane % (2 * apart) < apart for lane in range(LANES)]
        low = [lane if a else LANES + lane - apart for lane, a in enumerate(in_a)]
        high = [lane + apart if a else LANES + lane for lane, a in enumerate(in_a)]
        return combine(*(builder.shuffle_vector(a, b, ir.Constant(VI, order)) for order in (low, high)))

    return fold(0, 1)


def _at_most(builder: Any, lane: int, last: Any) -> Any:
    here = ir.Constant(I64, lane)
    return builder.select(builder.icmp_signed("<", here, last), here, last)


@intrinsic
def _tops(typing_context: Any, source: Any, step: Any, shift: Any, last: Any) -> tuple[Any, Codegen]:
    """The largest absolute value of each run, NaN if one is NaN; the last run's in the lanes beyond."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, shift, last = args
        below = builder.sub(builder.shl(ir.Constant(I64, 1), shift), ir.Constant(I64, 1))
        no_sign = ir.Constant(VI, [0x7FFFFFFF] * LANES)

        def larger(a: Any, b: Any) -> Any:  # without signs floats are in the order of integers, NaN above all
            return builder.select(builder.icmp_signed(">", a, b), a, b)

        def leaf(lane: int) -> Any:
            i = _at_most(builder, lane, last)
            row = builder.mul(builder.and_(i, below), step)
            group = builder.mul(builder.lshr(i, shift), ir.Constant(I64, LINE))
            start = builder.add(source, builder.add(row, group))
            return larger(*(builder.and_(_load(builder, start, half, VI, 4), no_sign) for half in (0, 64)))

        return builder.bitcast(_folded(builder, larger, leaf), VF)

    return simd.vector(*[types.int64] * 4), codegen


@intrinsic
def _factors(typing_context: Any, tops: Any) -> tuple[Any, Codegen]:
    """127 / top, or 0 for a top of 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = builder.fcmp_ordered("==", args[0], constant(0.0))
        return builder.select(nothing, constant(0.0), builder.fdiv(constant(127.0), args[0]))

    return simd.vector(simd.vector), codegen


@intrinsic
def _write_codes(typing_context: Any, place: Any, source: Any, factor: Any) -> tuple[Any, Codegen]:
    """32 floats times `factor`, rounded to int8."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, source, factor = args
        kind = ir.VectorType(I8, LANES)
        for half in (0, 1):
            x = _load(builder, source, 64 * half, VF, 4)
            rounded = builder.bitcast(simd.fma(builder, x, factor, constant(simd.ROUNDING)), VI)
            builder.store(builder.trunc(rounded, kind), at(builder, place, LANES * half, kind), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, simd.vector), codegen


@intrinsic
def _write_key(typing_context: Any, place: Any, source: Any, factor: Any) -> tuple[Any, Codegen]:
    """32 floats times `factor`, rounded, as unsigned bytes around 128: 4 of them every 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, source, factor = args
        for half in (0, 1):
            x = _load(builder, source, 64 * half, VF, 4)
            rounded = builder.bitcast(simd.fma(builder, x, factor, constant(simd.ROUNDING)), VI)
            codes = builder.trunc(builder.add(rounded, ir.Constant(VI, [128] * LANES)), ir.VectorType(I8, LANES))
            words = builder.bitcast(codes, ir.VectorType(I32, 4))
            for j in range(4):
                word = builder.extract_element(words, ir.Constant(I32, j))
                builder.store(word, at(builder, place, 64 * (4 * half + j), I32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, simd.vector), codegen


@intrinsic
def _write_fields(
    typing_context: Any, codes: Any, tops: Any, count: Any, fields: Any, apart: Any, coded: Any
) -> tuple[Any, Codegen]:
    """The fields of `count` runs with these tops and codes: each field's in a line, `apart` bytes from the last."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        codes, tops, count, fields, apart, coded = args
        last = builder.sub(count, ir.Constant(I64, 1))
        lanes = builder.bitcast(broadcast(builder, builder.bitcast(builder.trunc(count, I32), F32)), VI)
        mask = builder.icmp_signed("<", ir.Constant(VI, list(range(LANES))), lanes)
        scale = builder.fmul(tops, constant(1 / 127))

        def put(field: int, values: Any) -> None:
            place = builder.add(fields, builder.mul(apart, ir.Constant(I64, field)))
            simd.store_some(builder, builder.bitcast(values, VF), place, mask)

        def total(*halves: int) -> Any:
            def leaf(lane: int) -> Any:
                start = builder.add(codes, builder.mul(_at_most(builder, lane, last), ir.Constant(I64, BLOCK)))
                kind = ir.VectorType(I8, LANES)
                parts = [builder.sext(_load(builder, start, LANES * half, kind, 1), VI) for half in halves]
                return functools.reduce(builder.add, parts)

            return _folded(builder, builder.add, leaf)

        def product(of: Any, factor: int) -> Any:
            return builder.mul(of, ir.Constant(VI, [factor] * LANES))

        both = total(0, 1)
        put(SCALE, scale)
        put(SUM, builder.fmul(scale, builder.sitofp(both, VF)))
        put(ZERO_4, product(both, -8))
        put(ZERO_8, product(both, -128))
        with builder.if_then(builder.icmp_signed(">", coded, ir.Constant(I64, 1))):
            low = total(0)
            for half, some in enumerate((low, builder.sub(both, low))):
                put(HALF_ZERO + half, product(some, -128))
                put(HALF_SUM + half, builder.fmul(scale, builder.sitofp(some, VF)))
        return context.get_dummy_value()

    return types.void(types.int64, simd.vector, *[types.int64] * 4), codegen
