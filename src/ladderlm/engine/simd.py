"""Vectors of 16 floats inside numba: a type and a few intrinsics on generic LLVM vectors.

LLVM lowers `<16 x float>` to one AVX-512 register, two AVX2 or four NEON ones; nothing here names an instruction set.
No operation carries a fast-math flag, so LLVM may not reorder sums: results do not depend on how the code is tiled.
Addresses are plain int64 (`array.ctypes.data`); loads and stores need no alignment beyond 4 bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from ladderlm.engine.cache import BLOCK as BLOCK  # positions of a cache block and rows of a packed one: two vectors
from ladderlm.errors import UsageError
from ladderlm.store import cache_dir

LANES = 16
ROUNDING = 12582912.0  # 1.5 * 2^23: a small number added to it is rounded, and stands in its low bits
EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)  # coefficients, the highest power first
ISAS = {"avx512": "", "avxvnni": "alderlake", "avx2": "haswell", "portable": ""}  # and a processor that has no more

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
VF = ir.VectorType(F32, LANES)
VI = ir.VectorType(I32, LANES)
_SOURCES = ("simd", "tiles", "dots", "products", "pack", "acts", "kernels", "attention", "lora", "forward")
Codegen = Callable[[Any, Any, Any, Any], Any]


def _isa() -> str:
    """The instruction set of the integer kernels: the best this processor has, or the LADDERLM_ISA asked for."""
    has = llvmlite.binding.get_host_cpu_features()
    usable = ["portable"]
    if platform.machine().lower() in ("x86_64", "amd64") and all(has.get(f) for f in ("avx2", "fma", "f16c")):
        usable.append("avx2")
        usable.extend(["avxvnni"] if has.get("avxvnni") else [])
        usable.extend(["avx512"] if has.get("avx512vnni") and has.get("avx512vl") else [])
    wanted = os.environ.get("LADDERLM_ISA") or usable[-1]
    if wanted not in usable:
        where = f"LADDERLM_ISA={wanted}"
        raise UsageError("this processor has no such instruction set", where=where, cure=f"one of {', '.join(usable)}")
    if wanted != usable[-1] and ISAS[wanted]:  # all code is compiled for that processor then
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = ISAS[wanted], ""
    return wanted


ISA = _isa()
WIDE = ISA == "avx512"  # 32 registers of 16 lanes, else fewer


def _compiled_dir() -> Path:
    """Where numba keeps machine code: beside the sources if writable, named by their content.

    numba alone looks only at the file that holds a function, not at the files it calls into.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in _SOURCES))
    base = here / "__pycache__" if os.access(here, os.W_OK) else cache_dir() / "numba"
    return Path(os.environ.get("NUMBA_CACHE_DIR") or base) / f"engine-{digest.hexdigest()[:16]}-{ISA}"


COMPILED = _compiled_dir()


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` on first use, without the GIL, and keeps the machine code on disk."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(COMPILED)
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before


class Routine:
    """A function of int64 alone, for `invoke`: compiled, or loaded from disk, when its address is first asked for.

    numba compiles what a kernel calls once more with the kernel, and with what calls that; a routine it does not.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Any = None

    @property
    def address(self) -> int:
        if self._compiled is None:
            before = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(COMPILED)
            try:
                signature = types.void(*[types.int64] * self._function.__code__.co_argcount)
                self._compiled = numba.cfunc(signature, cache=True, error_model="numpy")(self._function)
            finally:
                numba.config.CACHE_DIR = before
        return int(self._compiled.address)


@intrinsic
def invoke(typing_context: Any, address: Any, args: Any) -> tuple[Any, Codegen]:
    """Calls the routine at `address` with a tuple of int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(I64, [I64] * len(values))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(args))), codegen


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, VF)


# --- Emitting LLVM ------------------------------------------------------------------------------------------------


def at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """A pointer to `kind` at `address` + `offset` bytes."""
    return builder.inttoptr(builder.add(address, ir.Constant(I64, offset)), ir.PointerType(kind))


def load_vector(builder: Any, address: Any, offset: int = 0, kind: Any = VF, align: int = 4) -> Any:
    return builder.load(at(builder, address, offset, kind), align=align)


def broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(VF, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(VI, [0] * LANES))


def constant(value: float) -> Any:
    return ir.Constant(VF, [ir.Constant(F32, float(np.float32(value)))] * LANES)


def call(builder: Any, name: str, *args: Any, result: Any = VF) -> Any:
    """Calls the LLVM intrinsic `name` on vectors."""
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", a, b, c)


def store_some(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Stores the lanes of `value` that `mask` names."""
    pointer = at(builder, address, 0, VF)
    signature = ir.FunctionType(ir.VoidType(), [VF, pointer.type, I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.store.v16f32.p0")
    builder.call(function, [value, pointer, ir.Constant(I32, 4), mask])


# --- Vectors in kernels -------------------------------------------------------------------------------------------


@intrinsic
def load(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load_vector(builder, args[0])

    return vector(types.int64), codegen


@intrinsic
def load_half(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The 16 float16 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(load_vector(builder, args[0], 0, ir.VectorType(ir.HalfType(), LANES), align=2), VF)

    return vector(types.int64), codegen


@intrinsic
def read(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The float32 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(at(builder, args[0], 0, F32), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def read_long(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The int64 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(at(builder, args[0], 0, I64), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def _pointer(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return at(builder, args[0], 0, F32)

    return types.CPointer(types.float32)(types.int64), codegen


@kernel
def floats(address: int, count: int) -> Any:
    """The `count` float32 at `address`, as an array."""
    return numba.carray(_pointer(address), (count,))


@intrinsic
def store(typing_context: Any, address: Any, value: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], at(builder, args[0], 0, VF), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def splat(typing_context: Any, scalar: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return broadcast(builder, args[0])

    return vector(types.float32), codegen


def _binary(emit: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return emit(builder, args[0], args[1])

        return vector(vector, vector), codegen

    return operation


add = _binary(lambda builder, x, y: builder.fadd(x, y))
mul = _binary(lambda builder, x, y: builder.fmul(x, y))
div = _binary(lambda builder, x, y: builder.fdiv(x, y))
maximum = _binary(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))  # y beside a NaN


@intrinsic
def multiply_add(typing_context: Any, x: Any, y: Any, z: Any) -> tuple[Any, Codegen]:
    """x * y + z, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fma(builder, *args)

    return vector(vector, vector, vector), codegen


@intrinsic
def exp(typing_context: Any, x: Any) -> tuple[Any, Codegen]:
    """e^x within 1.5 units in the last place: 2^n times a polynomial in |r| <= ln(2)/2; exactly 0 below -87."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low = builder.fcmp_ordered(">", args[0], constant(-87.0))
        value = builder.select(low, args[0], constant(-87.0))
        value = builder.select(builder.fcmp_ordered("<", value, constant(88.0)), value, constant(88.0))
        shifted = fma(builder, value, constant(1.4426950408889634), constant(ROUNDING))
        n = builder.fsub(shifted, constant(ROUNDING))
        rest = fma(builder, n, constant(-0.693359375), value)  # ln 2 in two parts (Cody and Waite)
        rest = fma(builder, n, constant(2.12194440e-4), rest)
        total = constant(EXP[0])
        for coefficient in EXP[1:]:
            total = fma(builder, total, rest, constant(coefficient))
        power = builder.shl(builder.bitcast(shifted, VI), ir.Constant(VI, [23] * LANES))  # n, into the exponent
        value = builder.bitcast(builder.add(builder.bitcast(total, VI), power), VF)
        return builder.select(low, value, constant(0.0))

    return vector(vector), codegen


@intrinsic
def within(typing_context: Any, x: Any, first: Any, low: Any, high: Any) -> tuple[Any, Codegen]:
    """The lanes of x, numbered from `first` on, between `low` and `high`; -inf in the place of others."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = ir.Constant(VI, list(range(LANES)))
        edges = [builder.trunc(builder.sub(edge, args[1]), I32) for edge in args[2:]]
        spread = [builder.bitcast(broadcast(builder, builder.bitcast(edge, F32)), VI) for edge in edges]
        inside = builder.and_(
            builder.icmp_signed(">=", numbers, spread[0]), builder.icmp_signed("<=", numbers, spread[1])
        )
        return builder.select(inside, args[0], ir.Constant(VF, [ir.Constant(F32, float("-inf"))] * LANES))

    return vector(vector, types.int64, types.int64, types.int64), codegen


@intrinsic
def lane(typing_context: Any, x: Any, index: Any) -> tuple[Any, Codegen]:
    """Lane `index` of x, in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return broadcast(builder, builder.extract_element(*args))

    return vector(vector, types.int64), codegen


@intrinsic
def pick(typing_context: Any, x: Any, index: Any) -> tuple[Any, Codegen]:
    """Lane `index` of x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(*args)

    return types.float32(vector, types.int64), codegen


@intrinsic
def total(typing_context: Any, x: Any) -> tuple[Any, Codegen]:
    """The sum of the 16 lanes, by halves: always in the same order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[0]
        for half in (8, 4, 2, 1):
            order = ir.Constant(VI, [(lane + half) % LANES for lane in range(LANES)])
            value = builder.fadd(value, builder.shuffle_vector(value, value, order))
        return builder.extract_element(value, ir.Constant(I32, 0))

    return types.float32(vector), codegen


@intrinsic
def largest(typing_context: Any, x: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call(builder, "llvm.vector.reduce.fmax.v16f32", args[0], result=F32)

    return types.float32(vector), codegen


@intrinsic
def write(typing_context: Any, address: Any, value: Any) -> tuple[Any, Codegen]:
    """Stores a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], at(builder, args[0], 0, F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def write_half(typing_context: Any, address: Any, value: Any) -> tuple[Any, Codegen]:
    """Stores a float32 as float16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = ir.HalfType()
        builder.store(builder.fptrunc(args[1], half), at(builder, args[0], 0, half), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def store_half(typing_context: Any, address: Any, value: Any) -> tuple[Any, Codegen]:
    """Stores 16 floats as float16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.HalfType(), LANES)
        builder.store(builder.fptrunc(args[1], kind), at(builder, args[0], 0, kind), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def byte(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The byte at `address`, from 0 to 255."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(at(builder, args[0], 0, I8), align=1), I64)

    return types.int64(types.int64), codegen


@intrinsic
def read_half(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The float16 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.load(at(builder, args[0], 0, ir.HalfType()), align=2), F32)

    return types.float32(types.int64), codegen


@intrinsic
def read_brain(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """The bfloat16 at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        upper = builder.zext(builder.load(at(builder, args[0], 0, I16), align=2), I32)
        return builder.bitcast(builder.shl(upper, ir.Constant(I32, 16)), F32)

    return types.float32(types.int64), codegen


def ask_for(builder: Any, address: Any) -> None:
    """Asks for the cache line at `address`, which need not exist."""
    pointer = ir.PointerType(I8)
    signature = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    read, keep, data = (ir.Constant(I32, n) for n in (0, 2, 1))
    builder.call(function, [builder.inttoptr(address, pointer), read, keep, data])


@intrinsic
def prefetch(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    """Asks for the cache line at `address`, which need not exist."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ask_for(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# --- Between threads ----------------------------------------------------------------------------------------------


@intrinsic
def atomic_add(typing_context: Any, address: Any, value: Any) -> tuple[Any, Codegen]:
    """Adds to the int64 at `address`; the value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", at(builder, args[0], 0, I64), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typing_context: Any, address: Any) -> tuple[Any, Codegen]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(at(builder, args[0], 0, I64), "acquire", 8)

    return types.int64(types.int64), codegen


give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())
