"""LoRA beside packed weights: B (A x) is added to what a matrix gives, of the row's own adapter (Hu et al. 2021).

Matrices with the same input form a group whose A's are joined, [ranks / 4][columns / 16][4][16], so that a phase before
theirs takes A x of all of them. B lies as the matrix's blocks do, [block][rank][32], times the adapter's scale. A row's
sums are always taken in the same order, whatever else is in the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm.engine import simd
from ladderlm.engine.memory import arena
from ladderlm.engine.pack import BLOCKS, COLS, FIRST, LAYER, Bytes
from ladderlm.engine.products import LINE, TILES, width
from ladderlm.engine.simd import BLOCK, LANES, Routine, kernel
from ladderlm.types import FloatArray

Ints = npt.NDArray[np.int64]
MATRICES = len(LAYER)
GROUPS = ((0, 1, 2), (3,), (4, 5), (6,))  # of pack.LAYER, by input
TOGETHER = 4  # ranks whose sums grow together
# Columns of an adapter's table [layers][matrices][COLUMNS]: A of the matrix's group with all its ranks; B, where in A x
# its ranks begin (bytes) and how many they are; the bytes of a row of B; and the routines for their precision.
A, RANKS, B, OFFSET, RANK, ROW_BYTES, REDUCE, EXPAND, COLUMNS = range(9)


class Low(NamedTuple):
    """A x of a step's rows, at `x` a row every `step` bytes, for one layer.

    At `tables` stands for each row the address of its adapter's table, 0 for none; it is 0 where no row has one.
    """

    tables: int
    layer: int
    x: int
    step: int


@kernel
def _entry(low: Any, which: int, table: int) -> Any:
    """The address of a matrix's columns in `table`."""
    return table + 8 * COLUMNS * (low.layer * MATRICES + which)


@kernel
def reduce(low: Any, which: int, acts: Any, row: int) -> None:
    """A x of a row of `acts`, of the group of matrix `which`."""
    table = simd.read_long(low.tables + 8 * row)
    if table:
        m = _entry(low, which, table)
        ranks = simd.read_long(m + 8 * RANKS)
        if ranks:
            x, place = acts.x + 4 * row * acts.cols, low.x + row * low.step
            simd.invoke(simd.read_long(m + 8 * REDUCE), (simd.read_long(m + 8 * A), ranks, x, acts.cols, place))


@kernel
def expand(low: Any, which: int, block: int, first: int, count: int, tile: int) -> None:
    """Adds B (A x) to a tile [count][32] of rows from `first` on: block `block` of matrix `which`."""
    t, end = first, first + (count if low.tables else 0)
    while t < end:
        table, same = simd.read_long(low.tables + 8 * t), t + 1
        while same < end and simd.read_long(low.tables + 8 * same) == table:
            same += 1
        if table:
            _expand(
                _entry(low, which, table), block, low.x + t * low.step, low.step, same - t, tile + LINE * (t - first)
            )
        t = same


@kernel
def _expand(m: int, block: int, x: int, step: int, count: int, tile: int) -> None:
    rank, row, t = simd.read_long(m + 8 * RANK), simd.read_long(m + 8 * ROW_BYTES), 0
    size = rank * row
    b, x = simd.read_long(m + 8 * B) + block * size, x + simd.read_long(m + 8 * OFFSET)
    while rank and t < count:
        n = width(count - t)
        simd.invoke(simd.read_long(m + 8 * EXPAND), (n, 0, b, row, x + t * step, step, rank, tile + LINE * t, LINE, 0))
        t += n
    # The next block's are wanted soon, and too far from any that were read for the processor to guess.
    for line in range(b + size, b + 2 * size, LINE // 2):
        simd.prefetch(line)


def _reduce_f32(a: int, ranks: int, x: int, cols: int, out: int) -> None:
    zero = simd.splat(np.float32(0))
    for r in range(0, ranks, TOGETHER):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for k in range(0, 4 * cols, 4 * LANES):
            v = simd.load(x + k)
            s0 = simd.multiply_add(simd.load(a), v, s0)
            s1 = simd.multiply_add(simd.load(a + 64), v, s1)
            s2 = simd.multiply_add(simd.load(a + 128), v, s2)
            s3 = simd.multiply_add(simd.load(a + 192), v, s3)
            a += 256
        _write(out + 4 * r, s0, s1, s2, s3)


def _reduce_f16(a: int, ranks: int, x: int, cols: int, out: int) -> None:
    zero = simd.splat(np.float32(0))
    for r in range(0, ranks, TOGETHER):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for k in range(0, 4 * cols, 4 * LANES):
            v = simd.load(x + k)
            s0 = simd.multiply_add(simd.load_half(a), v, s0)
            s1 = simd.multiply_add(simd.load_half(a + 32), v, s1)
            s2 = simd.multiply_add(simd.load_half(a + 64), v, s2)
            s3 = simd.multiply_add(simd.load_half(a + 96), v, s3)
            a += 128
        _write(out + 4 * r, s0, s1, s2, s3)


@kernel
def _write(out: int, s0: Any, s1: Any, s2: Any, s3: Any) -> None:
    simd.write(out, simd.total(s0))
    simd.write(out + 4, simd.total(s1))
    simd.write(out + 8, simd.total(s2))
    simd.write(out + 12, simd.total(s3))


_REDUCE = (Routine(_reduce_f32), Routine(_reduce_f16))


class Lora:
    """A fitted LoRA as the kernels read it: its table, the most `ranks` of a group, and the memory behind them.

    `pairs`: matrix name -> (A (rank, in), B (out, rank)) as models.adapter has them; `matrices`: the model's table;
    `half`: in float16, unless that loses more than roundings.
    """

    def __init__(
        self, pairs: Mapping[str, tuple[FloatArray, FloatArray]], scale: float, matrices: Ints, *, half: bool
    ) -> None:
        scaled = {name: (a, np.float32(scale) * b) for name, (a, b) in pairs.items()}
        self._dtype = np.float16 if half and all(_keeps(m) for pair in scaled.values() for m in pair) else np.float32
        self._kept: list[npt.NDArray[Any]] = []  # until they are gathered
        self._size = 0
        layers = (len(matrices) - FIRST) // MATRICES
        self._table = np.zeros((layers, MATRICES, COLUMNS), np.int64)
        kind = int(self._dtype == np.float16)
        self._table[..., [ROW_BYTES, REDUCE, EXPAND]] = 64 if kind else LINE, _REDUCE[kind].address, TILES[kind].address
        for layer in range(layers):
            rows = matrices[FIRST + MATRICES * layer :]
            for group in GROUPS:
                found = {i: scaled.get(f"model.layers.{layer}.{LAYER[i]}.weight") for i in group}
                self._place(layer, {i: pair for i, pair in found.items() if pair}, group, rows)
        self._buffer = self._gather()
        self.address = int(self._table.ctypes.data)
        self.ranks = int(self._table[..., RANKS].max())

    def _place(
        self, layer: int, pairs: dict[int, tuple[FloatArray, FloatArray]], group: tuple[int, ...], rows: Ints
    ) -> None:
        """Lays out a group. Matrices that are one in the family's files share their A."""
        if not pairs:
            return
        shared = {id(a): a for a, _ in pairs.values()}
        joined = np.concatenate(list(shared.values()))
        starts = dict(zip(shared, np.cumsum([0, *map(len, shared.values())]).tolist(), strict=False))
        ranks = -(-len(joined) // TOGETHER) * TOGETHER
        wide = np.zeros((ranks, int(rows[group[0], COLS])), self._dtype)
        wide[: len(joined), : joined.shape[1]] = joined
        woven = wide.reshape(ranks // TOGETHER, TOGETHER, -1, LANES).swapaxes(1, 2)
        self._table[layer, list(group), A], self._table[layer, list(group), RANKS] = self._keep(woven), ranks
        for i, (a, b) in pairs.items():
            blocks, rank = int(rows[i, BLOCKS]), len(a)
            padded = np.zeros((blocks * BLOCK, rank), self._dtype)
            padded[: len(b)] = b
            address = self._keep(padded.reshape(blocks, BLOCK, rank).transpose(0, 2, 1))
            self._table[layer, i, [B, OFFSET, RANK]] = address, 4 * starts[id(a)], rank

    def _keep(self, values: npt.NDArray[Any]) -> int:
        """Where `values` will be in the buffer."""
        self._size += values.nbytes
        self._kept.append(values)
        return self._size - values.nbytes

    def _gather(self) -> Bytes:
        """All in one buffer of large pages, in the order of use: scattered they would be read at half the speed."""
        buffer, end = arena(self._size), 0
        for values in self._kept:
            buffer[end : end + values.nbytes].view(self._dtype).reshape(values.shape)[:] = values
            end += values.nbytes
        self._kept = []
        self._table[..., [A, B]] += buffer.ctypes.data
        return buffer


def _keeps(values: FloatArray) -> bool:
    """Whether float16 holds `values`, each within 0.1 % of the largest."""
    with np.errstate(over="ignore"):
        lost = np.abs(values.astype(np.float16) - values).max()
    return bool(lost <= 1e-3 * np.abs(values).max())
