"""The cell of a stored weight: the interval of values that its format would have rounded to it.

Two forms of one weight agree when their cells overlap. That needs no guess at who wrote a file and how the scales
were chosen, holds in both directions, and is tight: noise of 1 % moves 1 in 30 weights of a 4-bit format out of its
cell, every second one of an 8-bit format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ladderlm.models.quants import KINDS, codes
from ladderlm.models.weights import Blocks, Weights
from ladderlm.types import FloatArray

FLOATS = ("F32", "F16", "BF16")
_SINGLE = np.float32(2.0**-20)  # of a weight or its row: sums of float32 in another order (merged adapters)
_SLACK = np.float32(1.01)  # scales are themselves rounded to 16 bits
_CLIPPED = np.float32(1.5)  # steps that a weight may lie beyond the last code: formats choose scales that clip a few
_AT_A_TIME = 2**20  # weights

# Of 2^bits codes: how many steps span the largest weights of a group, upwards and downwards together.
_LEVELS = {"Q2_K": 3, "Q3_K": 7, "Q4_0": 15, "Q4_1": 15, "Q4_K": 15, "Q5_0": 31, "Q5_1": 31, "Q5_K": 31, "Q6_K": 63,
           "Q8_0": 254, "IQ4_NL": 240, "IQ4_XS": 240}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A tensor as a form holds it: `values` (rows, cols), its `kind`, and the blocks of a quantised one."""

    kind: str
    values: FloatArray
    blocks: Blocks | None

    @classmethod
    def of(cls, weights: Weights, name: str, vectors: str = "F32") -> Held:
        """`vectors`: the kind of floats that the form keeps vectors in, where they fit it."""
        blocks = weights.blocks(name)
        values = weights.float32(name)
        values = values.reshape(-1, values.shape[-1])
        if blocks is not None:
            return cls(blocks.kind, values, None if blocks.kind in FLOATS else blocks)
        return cls(_narrowest(values, vectors), values, None)

    def chunks(self) -> Iterator[slice]:
        """Rows, some megabytes at a time."""
        step = max(1, _AT_A_TIME // self.values.shape[1])
        for row in range(0, len(self.values), step):
            yield slice(row, row + step)

    def cell(self, rows: slice) -> tuple[FloatArray, FloatArray]:
        """The lower and upper ends of some rows' cells."""
        values = self.values[rows]
        if self.blocks is None:
            half = _float_half(values, self.kind)
            return values - half, values + half
        return _code_cell(values, self.blocks, rows)

    def half(self, rows: slice) -> FloatArray:
        """Half the width of the cells, ends that clip not counted; broadcasts to (rows, cols)."""
        if self.blocks is None:
            return _float_half(self.values[rows], self.kind)
        q, scale, _ = _codes(self.blocks, rows)
        return _spread(_code_half(self.blocks.kind, q, scale), self.values[rows].shape)

    def needed(self, rows: slice, source: FloatArray) -> tuple[float, float]:
        """Sums of squares over groups: of the steps it has, and of those that `source`'s weights would need."""
        if self.blocks is None:
            return 0.0, 0.0
        _, scale, low = _codes(self.blocks, rows)
        groups = source.reshape(scale.size, -1)
        levels = np.float32(_LEVELS[self.blocks.kind])
        span = 2 * np.abs(groups).max(1) if low is None else np.maximum(groups.max(1), 0) - np.minimum(groups.min(1), 0)
        return float(np.square(scale).sum()), float(np.square(span / levels).sum())


def _narrowest(values: FloatArray, kind: str) -> str:
    """`kind` if all values fit it, else F32."""
    if kind == "F16" and np.array_equal(values.astype(np.float16).astype(np.float32), values):
        return "F16"
    if kind == "BF16" and not (np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF)).any():
        return "BF16"
    return "F32"


def _float_half(values: FloatArray, kind: str) -> FloatArray:
    """Half a step of a float format at each value, and what arithmetic in float32 may cost."""
    size = np.sqrt(np.mean(np.square(values), axis=-1, keepdims=True))
    lost: FloatArray = _SINGLE * np.maximum(np.abs(values), size)
    if kind == "F32":
        return lost
    digits, lowest = (10, -14) if kind == "F16" else (7, -126)
    _, exponent = np.frexp(values)
    return lost + np.ldexp(np.float32(0.5), np.maximum(exponent - 1, lowest) - digits)


def rounding(values: FloatArray, precision: str) -> FloatArray:
    """Half a step at each of `values` (rows, cols) in float16, bfloat16, 8 or 4 bits (groups of 32, or the row)."""
    if precision in ("float16", "bfloat16"):
        return _float_half(values, "F16" if precision == "float16" else "BF16")
    group = 32 if values.shape[1] % 32 == 0 else values.shape[1]
    groups = np.abs(values).reshape(len(values), -1, group)
    half = groups.max(axis=-1, keepdims=True) / np.float32(254 if precision == "8bit" else 15)
    return np.broadcast_to(half, groups.shape).reshape(values.shape)


def _codes(blocks: Blocks, rows: slice) -> tuple[np.ndarray, FloatArray, FloatArray | None]:
    """q (blocks, groups, k), scale (blocks, groups), low."""
    found = codes(blocks.kind, np.ascontiguousarray(blocks.data[rows]).reshape(-1, KINDS[blocks.kind].bytes))
    return found.q.reshape(*found.scale.shape, -1), found.scale, found.low


def _code_half(kind: str, q: np.ndarray, scale: FloatArray) -> FloatArray:
    """Half a step; of IQ4's unequal steps (10 in the middle, 24 at the ends) the larger one beside each code."""
    if kind.startswith("IQ4"):
        steps = np.float32(6.5) + np.abs(q.astype(np.float32)) * np.float32(1 / 16)
        return np.asarray(np.abs(scale)[:, :, None] * steps * _SLACK, np.float32)
    return np.asarray(np.abs(scale)[:, :, None] * np.float32(0.5) * _SLACK, np.float32)


def _code_cell(values: FloatArray, blocks: Blocks, rows: slice) -> tuple[FloatArray, FloatArray]:
    q, scale, _ = _codes(blocks, rows)
    half = _code_half(blocks.kind, q, scale)
    # The scale itself was rounded to 11 bits, some formats' after the codes were chosen.
    half = np.asarray(half + np.abs(values).reshape(q.shape) * np.float32(2.0**-11), np.float32)
    beyond = np.abs(scale)[:, :, None] * _CLIPPED * (16 if blocks.kind.startswith("IQ4") else 1)
    first, last = (-127, 113) if blocks.kind.startswith("IQ4") else _ends(blocks.kind)
    top, bottom = q == last, q == first
    upward = scale[:, :, None] > 0
    over = half + beyond * np.where(upward, top, bottom)
    under = half + beyond * np.where(upward, bottom, top)
    return values - _spread(under, values.shape), values + _spread(over, values.shape)


def _ends(kind: str) -> tuple[int, int]:
    """The lowest and highest code."""
    return (-127, 127) if kind == "Q8_0" else (0, _LEVELS[kind])


def _spread(groups: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """(blocks, groups, k or 1) to (rows, cols)."""
    k = int(np.prod(shape)) // (groups.shape[0] * groups.shape[1])
    return np.broadcast_to(groups, (*groups.shape[:2], k)).reshape(shape)
