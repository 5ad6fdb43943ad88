"""What the machine can do at most, measured: bytes read from memory, and multiplications with additions, a second.

A figure of speed means little without these two (the roofline model: Williams, Waterman and Patterson 2009). Both are
the work of `threads` threads together, and of the same instructions the kernels use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ladderlm.engine import dots
from ladderlm.engine.simd import (
    F32,
    I32,
    I64,
    WIDE,
    Codegen,
    add,
    broadcast,
    fma,
    kernel,
    load,
    load_vector,
    splat,
    total,
)

BUFFER = 2**28  # bytes: far beyond any cache
CHAINS = 12 if WIDE else 6  # sums that do not wait for each other, as many as the registers hold
INTEGER_CHAINS = 12
ROUNDS = 2**18


class Ceiling(NamedTuple):
    """`read_bytes` and operations a second (a multiplication with its addition counts 2): of float32, and of the
    integers that quantised weights are multiplied with."""

    read_bytes: float
    operations: float
    integer_operations: float


class Meter:
    """Measures the ceilings, again and again, on `threads` threads. Close it, or its threads stay."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._buffer = np.ones(BUFFER // 4, np.float32)
        self._sums = np.zeros((threads, 16), np.float32)
        self._passes()  # compiles

    def measure(self, seconds: float = 0.2) -> Ceiling:
        """The best of repeated passes, for about `seconds` each."""
        read, floats, integers = (_best(one, seconds) for one in self._passes())
        steps = self._threads * ROUNDS * 2
        integer_steps = steps * INTEGER_CHAINS * dots.LANES * 4
        return Ceiling(BUFFER / read, steps * CHAINS * 16 / floats, integer_steps / integers)

    def close(self) -> None:
        self._pool.shutdown()

    def _passes(self) -> list[Callable[[], None]]:
        here = self._buffer.ctypes.data

        def together(function: Any, count: int) -> Callable[[], None]:
            def call() -> None:
                def part(tid: int) -> None:
                    function(tid, self._threads, here, count, self._sums)

                list(self._pool.map(part, range(self._threads)))

            call()
            return call

        return [together(_read, BUFFER), together(_compute, ROUNDS), together(_compute_integers, ROUNDS)]


def _best(call: Callable[[], None], seconds: float) -> float:
    """The shortest time of a call."""
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best


@kernel
def _read(tid: int, size: int, address: int, count: int, sums: Any) -> None:
    """Adds up this thread's part of `count` bytes, in four sums."""
    part = count // size // 256 * 256
    here = address + tid * part
    a = b = c = d = splat(np.float32(0))
    for at in range(here, here + part, 256):
        a, b = add(a, load(at)), add(b, load(at + 64))
        c, d = add(c, load(at + 128)), add(d, load(at + 192))
    sums[tid, 0] = total(add(add(a, b), add(c, d)))


@kernel
def _compute(tid: int, size: int, address: int, rounds: int, sums: Any) -> None:
    sums[tid, 0] = _chains(address, rounds)


@kernel
def _compute_integers(tid: int, size: int, address: int, rounds: int, sums: Any) -> None:
    sums[tid, 0] = _integer_chains(address, rounds)


@intrinsic
def _integer_chains(typing_context: Any, address: Any, rounds: Any) -> tuple[Any, Codegen]:
    """The same of the integer kernels' steps, each 4 products in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = dots.sums_type()
        starts = [load_vector(builder, args[0], 64 * i, kind) for i in range(INTEGER_CHAINS)]
        sums = [cgutils.alloca_once_value(builder, start) for start in starts]
        whole = ir.VectorType(I32, dots.LANES)
        weights = load_vector(builder, args[0], 0, whole)
        with cgutils.for_range(builder, args[1], intp=I64):
            for place, other in zip(sums, sums[1:] + sums[:1], strict=True):
                changing = builder.bitcast(builder.load(other), whole)  # else the products would be computed once
                builder.store(dots.step(builder, builder.load(place), weights, changing), place)
        whole = builder.load(sums[0])
        for place in sums[1:]:
            whole = builder.add(whole, builder.load(place))
        return builder.uitofp(builder.extract_element(whole, ir.Constant(I32, 0)), F32)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def _chains(typing_context: Any, address: Any, rounds: Any) -> tuple[Any, Codegen]:
    """`rounds` times CHAINS vectors of 16 products added to sums that stay in registers; one of the results."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums = [cgutils.alloca_once_value(builder, load_vector(builder, args[0], 64 * i)) for i in range(CHAINS)]
        factor, step = broadcast(builder, ir.Constant(F32, 0.5)), load_vector(builder, args[0])
        with cgutils.for_range(builder, args[1], intp=I64):
            for place in sums:
                builder.store(fma(builder, builder.load(place), factor, step), place)
        whole = builder.load(sums[0])
        for place in sums[1:]:
            whole = builder.fadd(whole, builder.load(place))
        return builder.extract_element(whole, ir.Constant(I32, 0))

    return types.float32(types.int64, types.int64), codegen
