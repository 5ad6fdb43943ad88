"""Integer products: 32 rows of quantised weights times a tile of quantised tokens.

Weights are unsigned bytes or nibbles, activations signed bytes in groups of 32; a group's products are summed exactly
in int32 by the processor's own dot product where it has one. Then, group after group, the running float sum becomes
fma(sum, scale * token's scale, running), and where the format has minima fma(minimum, token's sum, running). So every
instruction set, tile and chunk gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ladderlm.engine.simd import F32, I8, I16, I32, I64, ISA, Codegen, ask_for, at

HALF = ir.HalfType()
GROUP = 32  # k that share a scale of the activations
# Fields of a token and group, each [groups][tokens]: the scale, scale * sum of the codes, and integers that take off
# the zero of 4 and of 8 bits; then, for formats with groups of 16, two each of the last and the second.
SCALE, SUM, ZERO_4, ZERO_8, HALF_ZERO, HALF_SUM, FIELDS = 0, 1, 2, 3, 4, 6, 8
ROWS = 32  # of a block

Vector = list[Any]  # LLVM values


class Format(NamedTuple):
    """How a quantised matrix is kept: bits of a weight, k in a group, bytes of a scale, whether it has minima.

    weight = scale * code + minimum, or scale * (code - zero) with the zero in the middle: 8 or 128.
    A block of 32 rows holds for every 32 k: [two halves of 16 rows][8 steps][16 rows][4 k] (4 bits: the low nibbles
    are one step, the high ones the next), then the scales of its groups [rows], then the minima.
    """

    bits: int
    group: int
    scale_bytes: int
    low: bool

    @property
    def codes_bytes(self) -> int:
        return ROWS * GROUP * self.bits // 8

    @property
    def side_bytes(self) -> int:
        """Of the scales, or of the minima, of 32 k."""
        return ROWS * self.scale_bytes * (GROUP // self.group)

    @property
    def bytes(self) -> int:
        return self.codes_bytes + self.side_bytes * (2 if self.low else 1)


# Q8_0; Q4_0; Q4_1; Q4_K; Q5_1, Q5_K and IQ4_XS; Q6_K; Q2_K and Q3_K
FORMATS = (
    Format(8, 32, 2, False),
    Format(4, 32, 2, False),
    Format(4, 32, 2, True),
    Format(4, 32, 4, True),
    Format(8, 32, 4, True),
    Format(8, 16, 4, False),
    Format(4, 16, 4, True),
)

LANES, VECTORS, TILES = {  # int32 in a register, registers of rows, tokens of a tile, largest first
    "avx512": (16, 1, (12, 8, 4, 2, 1)),
    "avxvnni": (8, 2, (4, 2, 1)),
    "avx2": (8, 1, (4, 2, 1)),
    "portable": (16, 1, (4, 2, 1)),
}[ISA]
WIDE_TILE = TILES[0]


def _constant(kind: Any, value: float, lanes: int = LANES) -> Any:
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _spread(builder: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _load(builder: Any, address: Any, offset: int, kind: Any, lanes: int = LANES) -> Any:
    return builder.load(at(builder, address, offset, ir.VectorType(kind, lanes)), align=1)


def _each(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    return _spread(builder, builder.load(at(builder, address, offset, kind), align=4))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


# --- One step: 4 k of some rows, times those of a token -----------------------------------------------------------


def _vnni(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    kind, bits = ir.VectorType(I8, 4 * LANES), 32 * LANES
    name = f"llvm.x86.avx512.vpdpbusd.{bits}"
    return _call(builder, name, total.type, total, builder.bitcast(weights, kind), builder.bitcast(x, kind))


def _multiplied(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """Without a dot product: byte by byte, in lanes of 32 bits."""
    for byte in range(4):
        w = builder.lshr(weights, _constant(I32, 8 * byte)) if byte else weights
        if byte < 3:
            w = builder.and_(w, _constant(I32, 255))
        signed = builder.ashr(builder.shl(x, _constant(I32, 24 - 8 * byte)), _constant(I32, 24))
        total = builder.add(total, builder.mul(w, signed))
    return total


def _pairs(builder: Any, total: Any, nibbles: Any, x: Any) -> Any:
    """AVX2: 15 * 127 * 2 * 8 steps fit into 16 bits."""
    kind, wide = ir.VectorType(I8, 4 * LANES), ir.VectorType(I16, 2 * LANES)
    found = _call(
        builder, "llvm.x86.avx2.pmadd.ub.sw", wide, builder.bitcast(nibbles, kind), builder.bitcast(x, kind)
    )  # fmt: skip
    return found if total is None else builder.add(total, found)


def step(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """4 products in each lane added to `total`, which is of `sums_type`; with AVX2 of nibbles."""
    if ISA == "avx2":
        return _pairs(builder, total, weights, x)
    return (_multiplied if ISA == "portable" else _vnni)(builder, total, weights, x)


def sums_type() -> Any:
    return ir.VectorType(I16, 2 * LANES) if ISA == "avx2" else ir.VectorType(I32, LANES)


class _Sums:
    """The integer sums of a tile's tokens and row vectors within a group."""

    def __init__(self, builder: Any, bits: int, tokens: int, vectors: int) -> None:
        self.builder, self.bits = builder, bits
        self.split = ISA == "avx2" and bits == 8  # bytes go as two nibbles
        self.chains = 2 if ISA != "avx2" and tokens * vectors <= 2 else 1  # a single sum would wait for itself
        parts = 2 if self.split else self.chains
        empty = None if ISA == "avx2" else _constant(I32, 0)
        self.values: list[list[Vector]] = [[[empty] * parts for _ in range(vectors)] for _ in range(tokens)]

    def add(self, number: int, weights: Vector, x: Iterator[Any]) -> None:
        """Adds 4 k: of each row vector the codes, of each token the four activations in every lane."""
        builder = self.builder
        if self.split:
            mask, four = _constant(I32, 0x0F0F0F0F), _constant(I32, 4)
            low = [builder.and_(w, mask) for w in weights]
            high = [builder.and_(builder.lshr(w, four), mask) for w in weights]
        for token, factor in zip(self.values, x, strict=True):
            for index, parts in enumerate(token):
                if self.split:
                    parts[0] = _pairs(builder, parts[0], low[index], factor)
                    parts[1] = _pairs(builder, parts[1], high[index], factor)
                else:
                    chain = number % self.chains
                    parts[chain] = step(builder, parts[chain], weights[index], factor)

    def total(self, token: int, vector: int, correction: Any) -> Any:
        """The sums as floats, after adding `correction`."""
        builder, parts = self.builder, self.values[token][vector]
        if ISA == "avx2":
            lanes = ir.VectorType(I32, LANES)
            factors = (1, 16) if self.split else (1,)
            parts = [
                _call(builder, "llvm.x86.avx2.pmadd.wd", lanes, part, _constant(I16, factor, 2 * LANES))
                for part, factor in zip(parts, factors, strict=True)
            ]
        for part in parts:
            correction = builder.add(correction, part)
        return builder.sitofp(correction, ir.VectorType(F32, LANES))


# --- A tile -------------------------------------------------------------------------------------------------------


def _offset(form: Format, vector: int) -> int:
    """Where the rows of a vector begin among the 16 rows of a half, or in the next half, in bytes."""
    row = vector * LANES
    return row // 16 * (form.codes_bytes // 2) + row % 16 * 4


def _codes(builder: Any, form: Format, address: Any, vectors: int) -> Iterator[Vector]:
    """The 8 steps of codes, each for all row vectors."""
    if form.bits == 8:
        for step in range(8):
            yield [_load(builder, address, 64 * step + _offset(form, v), I32) for v in range(vectors)]
        return
    mask, four = _constant(I32, 0x0F0F0F0F), _constant(I32, 4)
    for pair in range(4):
        both = [_load(builder, address, 64 * pair + _offset(form, v), I32) for v in range(vectors)]
        yield [builder.and_(v, mask) for v in both]
        yield [builder.and_(builder.lshr(v, four), mask) for v in both]


def _side(builder: Any, form: Format, address: Any, offset: int) -> Any:
    """Scales or minima of a row vector, as floats."""
    if form.scale_bytes == 4:
        return _load(builder, address, offset, F32)
    return builder.fpext(_load(builder, address, offset, HALF), ir.VectorType(F32, LANES))


def _counter(builder: Any, start: Any) -> Any:
    slot = cgutils.alloca_once(builder, start.type)
    builder.store(start, slot)
    return slot


def _advance(builder: Any, slot: Any, step: Any) -> None:
    step = ir.Constant(I64, step) if isinstance(step, int) else step
    builder.store(builder.add(builder.load(slot), step), slot)


class _Tile:
    """Emits the product of `tokens` tokens and some vectors of rows, over all groups."""

    def __init__(self, builder: Any, form: Format, tokens: int, vectors: int, field: Any) -> None:
        self.builder, self.form, self.tokens, self.vectors = builder, form, tokens, vectors
        self.field = field  # bytes of a field
        self.lines = -(-form.bytes * LANES * vectors // (64 * ROWS))  # of the cache, of a group
        kind = ir.VectorType(F32, LANES)
        self.running = [[cgutils.alloca_once(builder, kind) for _ in range(vectors)] for _ in range(tokens)]

    def run(self, weights: Any, sides: Any, x: Any, side: Any, groups: Any, ahead: Any) -> None:
        """From addresses: codes of the first rows, their scales; codes of the tokens, their fields.

        What lies `ahead` bytes further is fetched into the cache meanwhile; nothing if that is 0.
        """
        builder, form, tokens = self.builder, self.form, self.tokens
        for token in self.running:
            for slot in token:
                builder.store(_constant(F32, 0.0), slot)
        at_weight, at_side, at_x, at_field = (_counter(builder, a) for a in (weights, sides, x, side))
        far = builder.icmp_signed("!=", ahead, ir.Constant(I64, 0))
        with cgutils.for_range(builder, groups):
            with builder.if_then(far, likely=True):
                self._fetch(builder.add(builder.load(at_weight), ahead))
            self._group(*(builder.load(slot) for slot in (at_weight, at_side, at_x, at_field)))
            for slot, step in (
                (at_weight, form.bytes), (at_side, form.bytes), (at_x, GROUP * tokens), (at_field, 4 * tokens),
            ):  # fmt: skip
                _advance(builder, slot, step)

    def _fetch(self, address: Any) -> None:
        """Asks for this tile's share of the cache lines of a group."""
        for line in range(self.lines):
            ask_for(self.builder, self.builder.add(address, ir.Constant(I64, 64 * line)))

    def _group(self, weights: Any, sides: Any, x: Any, field: Any) -> None:
        form, builder = self.form, self.builder
        sums = _Sums(builder, form.bits, self.tokens, self.vectors)
        for number, codes in enumerate(_codes(builder, form, weights, self.vectors)):
            sums.add(number, codes, (_each(builder, x, GROUP * t + 4 * number, I32) for t in range(self.tokens)))
            if form.group == 16 and number in (3, 7):
                self._finish(sums, sides, field, number // 4)
                sums = _Sums(builder, form.bits, self.tokens, self.vectors)
        if form.group == GROUP:
            self._finish(sums, sides, field, None)

    def _finish(self, sums: _Sums, sides: Any, field: Any, half: int | None) -> None:
        """Closes a group: of all 32 k, or of one half."""
        form, builder, kind = self.form, self.builder, ir.VectorType(F32, LANES)
        name = f"llvm.fma.v{LANES}f32"
        first = (half or 0) * ROWS * form.scale_bytes
        at_vector = [first + v * LANES * form.scale_bytes for v in range(self.vectors)]
        scales = [_side(builder, form, sides, o) for o in at_vector]
        lows = [_side(builder, form, sides, o + form.side_bytes) for o in at_vector] if form.low else []
        zero, total = (
            (ZERO_4 if form.bits == 4 else ZERO_8, SUM) if half is None else (HALF_ZERO + half, HALF_SUM + half)
        )
        zero, total = self._place(field, zero), self._place(field, total)
        for t in range(self.tokens):
            correction = _constant(I32, 0) if form.low else _each(builder, zero, 4 * t, I32)
            scale = _each(builder, field, 4 * t, F32)
            weight = _each(builder, total, 4 * t, F32) if form.low else None
            for v, slot in enumerate(self.running[t]):
                factor = builder.fmul(scales[v], scale)
                value = _call(builder, name, kind, sums.total(t, v, correction), factor, builder.load(slot))
                if form.low:
                    value = _call(builder, name, kind, lows[v], weight, value)
                builder.store(value, slot)

    def _place(self, field: Any, index: int) -> Any:
        return self.builder.add(field, self.builder.mul(ir.Constant(I64, index), self.field))

    def write(self, out: Any) -> None:
        for t, token in enumerate(self.running):
            for v, slot in enumerate(token):
                place = at(self.builder, out, 4 * (ROWS * t + LANES * v), ir.VectorType(F32, LANES))
                self.builder.store(self.builder.load(slot), place, align=4)


def _vectors(tokens: int) -> int:
    """Row vectors of a tile: few tokens leave registers for more rows."""
    if ISA == "avx512":
        return 1 if tokens > 4 else 2
    return VECTORS


def _product(builder: Any, form: Format, tokens: int, args: Any) -> None:
    weights, x, side, groups, out, ahead = args
    vectors = _vectors(tokens)
    field, rows = builder.mul(groups, ir.Constant(I64, 4 * tokens)), LANES * vectors
    tile = _Tile(builder, form, tokens, vectors, field)
    nothing = builder.icmp_signed("==", ahead, ir.Constant(I64, 0))
    with cgutils.for_range(builder, ir.Constant(I64, ROWS // rows)) as part:
        row = builder.mul(part.index, ir.Constant(I64, rows))
        half = builder.mul(builder.lshr(row, ir.Constant(I64, 4)), ir.Constant(I64, form.codes_bytes // 2))
        within = builder.mul(builder.and_(row, ir.Constant(I64, 15)), ir.Constant(I64, 4))
        sides = builder.add(weights, ir.Constant(I64, form.codes_bytes))
        sides = builder.add(sides, builder.mul(row, ir.Constant(I64, form.scale_bytes)))
        offset = builder.add(half, within)
        # Each part of the rows fetches its share of the lines of a group: from the group's beginning on.
        share = builder.mul(part.index, ir.Constant(I64, 64 * tile.lines))
        far = builder.select(nothing, ahead, builder.sub(builder.add(ahead, share), offset))
        tile.run(builder.add(weights, offset), sides, x, side, groups, far)
        tile.write(builder.add(out, builder.mul(row, ir.Constant(I64, 4))))


@intrinsic(prefer_literal=True)
def product(
    context: Any, kind: Any, tokens: Any, weights: Any, x: Any, side: Any, groups: Any, out: Any, ahead: Any
) -> tuple[Any, Codegen]:
    """A block of 32 rows kept in FORMATS[kind] times a tile of tokens (one of TILES), into out [tokens][32].

    x holds the tokens' codes [groups][tokens][32] and `side` their fields [FIELDS][groups][tokens].
    """
    form = FORMATS[kind.literal_value]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, tokens, *rest = args
        after = builder.append_basic_block("after")
        choice = builder.switch(tokens, after)
        for size in TILES:
            block = builder.append_basic_block(f"product{size}")
            choice.add_case(ir.Constant(I64, size), block)
            builder.position_at_end(block)
            _product(builder, form, size, rest)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(kind, *[types.int64] * 7), codegen
