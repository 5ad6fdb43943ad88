"""The inner loops in floats: unquantised weights times activations, and the outer products of attention.

All of them compute an element the same way, whatever the shape: multiply-add over k ascending within a chunk, from
zero; then added to the running sum. That is what makes logits the same to the bit for any batch or chunk.
"""

from __future__ import annotations

from typing import Any, Literal

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ladderlm.engine.simd import (
    F32,
    I8,
    I16,
    I64,
    LANES,
    VF,
    VI,
    WIDE,
    Codegen,
    ask_for,
    broadcast,
    constant,
    fma,
    load_vector,
)

Storage = Literal["f32", "f16", "bf16", "i8"]
STORAGES: tuple[Storage, ...] = ("f32", "f16", "bf16")  # of matrices
KINDS: tuple[Storage, ...] = (*STORAGES, "i8")
CHUNK = 256  # k of a running sum
TOKENS = (8, 4, 2, 1) if WIDE else (2, 1)  # of a tile
ASKING = 4  # tokens, at most, of a tile that asks for rows ahead
VECTOR_BYTES = 4 * LANES
V16, VH = ir.VectorType(I16, LANES), ir.VectorType(ir.HalfType(), LANES)


def _size(storage: Storage) -> int:
    return {"f32": 4, "i8": 1}.get(storage, 2)


def _vector(builder: Any, storage: Storage, address: Any, index: int) -> Any:
    """The floats of vector `index` after `address`."""
    offset = index * LANES * _size(storage)
    if storage == "f32":
        return load_vector(builder, address, offset)
    if storage == "f16":
        return builder.fpext(load_vector(builder, address, offset, VH, align=2), VF)
    if storage == "i8":
        return builder.sitofp(load_vector(builder, address, offset, ir.VectorType(I8, LANES), align=1), VF)
    wide = builder.zext(load_vector(builder, address, offset, V16, align=2), VI)
    return builder.bitcast(builder.shl(wide, ir.Constant(VI, [16] * LANES)), VF)


def _counter(builder: Any, start: Any) -> Any:
    """A mutable int64 (LLVM promotes it to a register)."""
    slot = cgutils.alloca_once(builder, I64)
    builder.store(start, slot)
    return slot


def _advance(builder: Any, slot: Any, step: Any) -> None:
    step = ir.Constant(I64, step) if isinstance(step, int) else step
    builder.store(builder.add(builder.load(slot), step), slot)


def _scalar(builder: Any, address: Any, offset: int = 0) -> Any:
    return broadcast(builder, load_vector(builder, address, offset, F32))


def _pointer(builder: Any, address: Any, half: int) -> Any:
    moved = builder.add(address, ir.Constant(I64, half * VECTOR_BYTES))
    return builder.inttoptr(moved, ir.PointerType(VF))


def _tile(builder: Any, storage: Storage, tokens: int, replace: Any, args: Any) -> None:
    rows, row_step, x, x_step, n, out, out_step, ahead = args
    partial = [[cgutils.alloca_once(builder, VF) for _ in (0, 1)] for _ in range(tokens)]
    for slots in partial:
        for slot in slots:
            builder.store(constant(0.0), slot)
    row, column = _counter(builder, rows), _counter(builder, ir.Constant(I64, 0))
    starts = [builder.add(x, builder.mul(x_step, ir.Constant(I64, t))) for t in range(tokens)]
    with cgutils.for_range(builder, n):
        here, offset = builder.load(row), builder.load(column)
        if tokens <= ASKING:
            ask_for(builder, builder.add(here, ahead))
        halves = [_vector(builder, storage, here, half) for half in (0, 1)]
        for start, slots in zip(starts, partial, strict=True):
            factor = _scalar(builder, builder.add(start, offset))
            for half, slot in zip(halves, slots, strict=True):
                builder.store(fma(builder, half, factor, builder.load(slot)), slot)
        _advance(builder, row, row_step)
        _advance(builder, column, 4)
    for t, slots in enumerate(partial):
        target = builder.add(out, builder.mul(out_step, ir.Constant(I64, t)))
        for half, slot in enumerate(slots):
            pointer = _pointer(builder, target, half)
            before = builder.select(replace, constant(0.0), builder.load(pointer, align=4))
            builder.store(builder.fadd(before, builder.load(slot)), pointer, align=4)


@intrinsic(prefer_literal=True)
def tile(
    context: Any, kind: Any, tokens: Any, replace: Any, rows: Any, row_step: Any, x: Any, x_step: Any, n: Any,
    out: Any, out_step: Any, ahead: Any,
) -> tuple[Any, Codegen]:  # fmt: skip
    """`tokens` (of TOKENS) rows of scalars times n rows of 32 numbers kept as KINDS[kind].

    out[t][0:32] becomes, or with replace = 0 grows by, the sum over k of x[t][k] * rows[k][0:32]; steps in bytes.
    Tiles of few tokens ask for what lies `ahead` bytes after each row: they wait for memory more than they compute.
    """
    storage = KINDS[kind.literal_value]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, tokens, replace, *rest = args
        whole = builder.icmp_signed("!=", replace, ir.Constant(I64, 0))
        after = builder.append_basic_block("after")
        choice = builder.switch(tokens, after)
        for size in TOKENS:
            block = builder.append_basic_block(f"tile{size}")
            choice.add_case(ir.Constant(I64, size), block)
            builder.position_at_end(block)
            _tile(builder, storage, size, whole, rest)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(kind, *[types.int64] * 10), codegen
