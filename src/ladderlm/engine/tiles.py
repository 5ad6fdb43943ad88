"""The inner loops: weights of every packed kind times activations, and the outer-product tile behind all of them.

Each factory emits one LLVM loop nest for a fixed shape. All of them compute an output element the same way, whatever
the shape: multiply-add over k ascending within a group, from zero; then times the group's scale, added to the running
sum; then plus the group's minimum times the sum of the group's activations. That is what makes logits the same to the
bit for any batch or chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ladderlm.engine.simd import F32, I8, I16, I32, I64, LANES, VF, VI, Codegen, broadcast, constant, fma, load_vector

Storage = Literal["f32", "f16", "bf16", "q8", "q4"]
PAIR_BYTES: dict[Storage, int] = {"f32": 256, "f16": 128, "bf16": 128, "q8": 64, "q4": 32}  # 2 k x 32 rows
V8, V16, VH = ir.VectorType(I8, LANES), ir.VectorType(I16, LANES), ir.VectorType(ir.HalfType(), LANES)
VECTOR_BYTES = 4 * LANES


def _pair(builder: Any, storage: Storage, address: Any, offset: int) -> list[list[Any]]:
    """Weights of two consecutive k as vectors [k][half of the 32 rows]."""

    def at(index: int, kind: Any, size: int) -> Any:
        return load_vector(builder, address, offset + index * LANES * size, kind, align=1)

    if storage == "q4":  # a byte holds k in its low and k + 1 in its high nibble
        wide = [builder.zext(at(i, V8, 1), VI) for i in (0, 1)]
        low = [builder.and_(v, ir.Constant(VI, [15] * LANES)) for v in wide]
        high = [builder.lshr(v, ir.Constant(VI, [4] * LANES)) for v in wide]
        return [[builder.sitofp(v, VF) for v in half] for half in (low, high)]

    def one(index: int) -> Any:
        if storage == "f32":
            return at(index, VF, 4)
        if storage == "f16":
            return builder.fpext(at(index, VH, 2), VF)
        if storage == "bf16":
            return builder.bitcast(builder.shl(builder.zext(at(index, V16, 2), VI), ir.Constant(VI, [16] * LANES)), VF)
        return builder.sitofp(builder.sext(at(index, V8, 1), VI), VF)

    return [[one(0), one(1)], [one(2), one(3)]]


def _counter(builder: Any, start: Any) -> Any:
    """A mutable int64 (LLVM promotes it to a register)."""
    slot = cgutils.alloca_once(builder, I64)
    builder.store(start, slot)
    return slot


def _advance(builder: Any, slot: Any, step: Any) -> None:
    step = ir.Constant(I64, step) if isinstance(step, int) else step
    builder.store(builder.add(builder.load(slot), step), slot)


def _slots(builder: Any, count: int) -> list[Any]:
    return [cgutils.alloca_once(builder, VF) for _ in range(count)]


def _scalar(builder: Any, address: Any, offset: int = 0) -> Any:
    return broadcast(builder, load_vector(builder, address, offset, F32))


def dot(storage: Storage) -> Any:
    """One token times one block of 32 rows.

    dot(data, scales, scale_step, mins, min_step, group, groups, x, sums, out): `group` is 16 or 32 k; steps are bytes
    per group; sums[k // 32] are the sums of x; `out` receives 32 floats.
    """

    @intrinsic
    def run(
        context: Any, data: Any, scales: Any, scale_step: Any, mins: Any, min_step: Any, group: Any, groups: Any,
        x: Any, sums: Any, out: Any,
    ) -> tuple[Any, Codegen]:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data, scales, scale_step, mins, min_step, group, groups, x, sums, out = args
            weight, activation = _counter(builder, data), _counter(builder, x)
            scale_at, min_at = _counter(builder, scales), _counter(builder, mins)
            running, partial = _slots(builder, 2), _slots(builder, 2)
            for slot in running:
                builder.store(constant(0.0), slot)
            with cgutils.for_range(builder, groups) as outer:
                for slot in partial:
                    builder.store(constant(0.0), slot)
                with cgutils.for_range(builder, builder.udiv(group, ir.Constant(I64, 16))):
                    values = [builder.load(slot) for slot in partial]
                    here, start = builder.load(weight), builder.load(activation)
                    for pair in range(8):
                        for k, halves in enumerate(_pair(builder, storage, here, pair * PAIR_BYTES[storage])):
                            factor = _scalar(builder, start, 4 * (2 * pair + k))
                            values = [fma(builder, half, factor, v) for half, v in zip(halves, values, strict=True)]
                    for value, slot in zip(values, partial, strict=True):
                        builder.store(value, slot)
                    _advance(builder, weight, 8 * PAIR_BYTES[storage])
                    _advance(builder, activation, 64)
                which = builder.udiv(builder.mul(outer.index, group), ir.Constant(I64, 32))
                sum_at = builder.add(sums, builder.mul(which, ir.Constant(I64, 4)))
                _finish_group(builder, running, partial, builder.load(scale_at), builder.load(min_at), sum_at)
                _advance(builder, scale_at, scale_step)
                _advance(builder, min_at, min_step)
            for half, slot in enumerate(running):
                builder.store(builder.load(slot), _pointer(builder, out, half), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return run


def _pointer(builder: Any, address: Any, half: int) -> Any:
    moved = builder.add(address, ir.Constant(I64, half * VECTOR_BYTES))
    return builder.inttoptr(moved, ir.PointerType(VF))


def _finish_group(builder: Any, running: list[Any], partial: list[Any], scale: Any, low: Any, sum_at: Any) -> None:
    """running = low * sum + (scale * partial + running), element by element."""
    factor = _scalar(builder, sum_at)
    for half, (slot, part) in enumerate(zip(running, partial, strict=True)):
        before, added = builder.load(slot, align=4), builder.load(part, align=4)
        scaled = fma(builder, load_vector(builder, scale, half * VECTOR_BYTES), added, before)
        value = fma(builder, load_vector(builder, low, half * VECTOR_BYTES), factor, scaled)
        builder.store(value, slot, align=4)


def unpack(storage: Storage) -> Any:
    """unpack(data, pairs, panel): weights of 32 rows and 2 * pairs k, as floats [k][32], unscaled.

    The following weights are fetched into the cache meanwhile: they are unpacked next.
    """

    @intrinsic
    def run(typing_context: Any, data: Any, pairs: Any, panel: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            size, at_once = PAIR_BYTES[storage], max(1, 64 // PAIR_BYTES[storage])  # whole cache lines
            source, target = _counter(builder, args[0]), _counter(builder, args[2])
            ahead = builder.mul(args[1], ir.Constant(I64, size))
            with cgutils.for_range(builder, builder.udiv(args[1], ir.Constant(I64, at_once))):
                here = builder.load(source)
                _prefetch(builder, builder.add(here, ahead))
                vectors = [v for i in range(at_once) for k in _pair(builder, storage, here, i * size) for v in k]
                for index, value in enumerate(vectors):
                    builder.store(value, _pointer(builder, builder.load(target), index), align=4)
                _advance(builder, source, at_once * size)
                _advance(builder, target, len(vectors) * VECTOR_BYTES)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return run


def _prefetch(builder: Any, address: Any) -> None:
    """Asks for the cache line at `address`, which need not exist."""
    pointer = ir.PointerType(I8)
    signature = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    read, keep, data = (ir.Constant(I32, n) for n in (0, 2, 1))
    builder.call(function, [builder.inttoptr(address, pointer), read, keep, data])


def tile(tokens: int, finish: Literal["set", "add", "scale"]) -> Any:
    """`tokens` rows of scalars times n rows of 32 floats: out[t][0:32] from sum over k of x[t][k] * rows[k][0:32].

    tile(rows, row_step, x, x_step, n, out, out_step, scale, low, sums, sums_step), steps in bytes. "set" replaces
    out, "add" adds to it, "scale" closes a group of weights as `dot` does (the last four arguments are used then).
    """

    @intrinsic
    def run(
        context: Any, rows: Any, row_step: Any, x: Any, x_step: Any, n: Any, out: Any, out_step: Any,
        scale: Any, low: Any, sums: Any, sums_step: Any,
    ) -> tuple[Any, Codegen]:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            rows, row_step, x, x_step, n, out, out_step, scale, low, sums, sums_step = args
            partial = [_slots(builder, 2) for _ in range(tokens)]
            for slots in partial:
                for slot in slots:
                    builder.store(constant(0.0), slot)
            row, column = _counter(builder, rows), _counter(builder, ir.Constant(I64, 0))
            starts = list(_strided(builder, x, x_step, tokens))
            with cgutils.for_range(builder, n):
                here, offset = builder.load(row), builder.load(column)
                halves = [load_vector(builder, here, half * VECTOR_BYTES) for half in (0, 1)]
                for start, slots in zip(starts, partial, strict=True):
                    factor = _scalar(builder, builder.add(start, offset))
                    for half, slot in zip(halves, slots, strict=True):
                        builder.store(fma(builder, half, factor, builder.load(slot)), slot)
                _advance(builder, row, row_step)
                _advance(builder, column, 4)
            targets = _strided(builder, out, out_step, tokens)
            for target, slots, sum_at in zip(targets, partial, _strided(builder, sums, sums_step, tokens), strict=True):
                pointers = [_pointer(builder, target, half) for half in (0, 1)]
                if finish == "scale":
                    _finish_group(builder, pointers, slots, scale, low, sum_at)
                    continue
                for pointer, slot in zip(pointers, slots, strict=True):
                    value = builder.load(slot)
                    if finish == "add":
                        value = builder.fadd(builder.load(pointer, align=4), value)
                    builder.store(value, pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), codegen

    return run


def _strided(builder: Any, start: Any, step: Any, count: int) -> Iterator[Any]:
    address = start
    for index in range(count):
        yield address
        if index + 1 < count:
            address = builder.add(address, step)
