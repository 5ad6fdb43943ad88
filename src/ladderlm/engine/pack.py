"""Weights as the kernels read them: GGUF's formats and floats, without loss, in blocks of 32 rows.

A block of an unquantised matrix holds, for k ascending, the 32 rows' weights side by side. A quantised one is laid out
for integer products: see dots.Format; weight = scale * (code - zero) + minimum. Rows are padded to 32 and columns to
32 with zeros. All matrices share one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ladderlm import events, store
from ladderlm.engine import dots
from ladderlm.engine.memory import arena
from ladderlm.engine.products import EXACT, PRODUCTS
from ladderlm.engine.tiles import STORAGES
from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.quants import KINDS, codes
from ladderlm.models.weights import Blocks, Weights, matrix_blocks

LAYOUT = 2  # raise when the bytes below change: it names the cached files
CACHE_ABOVE = 50_000_000  # weights; packing fewer takes no longer than reading a cache
QUANTISED = len(STORAGES)  # storages from here on are dots.FORMATS

# Columns of the table that tells the kernels where a matrix is; `CODED`: whether it is multiplied
# with activations in 8 bits, `ROUTINE` the address of what does it (products.py).
STORAGE, BLOCKS, COLS, DATA, BLOCK_BYTES, CODED, ROUTINE, COLUMNS = range(8)
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
EMBED, HEAD, FIRST = 0, 1, 2  # rows of the table: embedding, output head, then len(LAYER) rows a layer

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def padded(n: int) -> int:
    """`n` rounded up to a multiple of 32."""
    return -(-n // 32) * 32


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """All matrices of a model: `table[i]` describes matrix i of `buffer`, which must outlive the kernels' calls."""

    buffer: Bytes
    table: Ints

    @property
    def coded(self) -> int:
        """0 where no matrix takes activations in 8 bits, 2 where one takes sums of 16 of them, else 1."""
        kinds = {int(kind) - QUANTISED for kind in self.table[self.table[:, CODED] > 0, STORAGE]}
        return max((2 if dots.FORMATS[kind].group == 16 else 1 for kind in kinds), default=0)


# --- Into the buffer ----------------------------------------------------------------------------------------------

_FLOATS = {"F32": 0, "F16": 1, "BF16": 2}
_KINDS = {"Q8_0": 0, "Q5_0": 0, "IQ4_NL": 0, "Q4_0": 1, "Q4_1": 2, "Q4_K": 3, "Q5_1": 4, "Q5_K": 4, "IQ4_XS": 4,
          "Q6_K": 5, "Q2_K": 6, "Q3_K": 6}  # fmt: skip


def _shape(kind: str, shape: tuple[int, ...], start: int) -> tuple[Ints, int]:
    """The table row of a matrix whose data begins at byte `start` (addresses relative), and the byte after it."""
    row, width = np.zeros(COLUMNS, np.int64), padded(shape[1])
    row[[BLOCKS, COLS, DATA]] = padded(shape[0]) // 32, width, start
    if kind in _FLOATS:
        row[[STORAGE, BLOCK_BYTES]] = _FLOATS[kind], 32 * width * KINDS[kind].bytes
    else:
        form = dots.FORMATS[_KINDS[kind]]
        row[[STORAGE, BLOCK_BYTES]] = QUANTISED + _KINDS[kind], width // 32 * form.bytes
    return row, start + int(row[BLOCKS] * row[BLOCK_BYTES])


def _filled(values: npt.NDArray[Any], fill: int = 0) -> npt.NDArray[Any]:
    """Rows up to a multiple of 32, the new ones all `fill`."""
    missing = padded(len(values)) - len(values)
    return np.concatenate([values, np.full((missing, values.shape[1]), fill, values.dtype)]) if missing else values


def _write(matrix: Blocks, row: Ints, buffer: Bytes) -> None:
    """Packs `matrix` where `row` says, some blocks at a time."""
    start, size, width = int(row[DATA]), int(row[BLOCK_BYTES]), int(row[COLS])
    at_once = 32 * max(1, 2**20 // (32 * width))
    for first in range(0, matrix.rows, at_once):
        data = np.ascontiguousarray(matrix.data[first : first + at_once])
        blocks = padded(len(data)) // 32
        begin = start + first // 32 * size
        out = buffer[begin : begin + blocks * size].reshape(blocks, size)
        if matrix.kind in _FLOATS:
            dtype = np.uint32 if matrix.kind == "F32" else np.uint16
            values = _filled(np.pad(data.view(dtype), ((0, 0), (0, width - matrix.cols))))
            out.view(dtype).reshape(blocks, width, 32)[:] = values.reshape(blocks, 32, width).transpose(0, 2, 1)
        else:
            _write_codes(matrix.kind, data, row, out.reshape(blocks, width // 32, -1))


def _write_codes(kind: str, data: Bytes, row: Ints, out: Bytes) -> None:
    """Packs rows of a quantised kind into `out` (blocks, groups of 32 k, bytes)."""
    form, blocks, groups = dots.FORMATS[int(row[STORAGE]) - QUANTISED], out.shape[0], out.shape[1]
    rows = len(data)
    q, zero, scale, low = codes(kind, data.reshape(-1, KINDS[kind].bytes))
    fill = 0 if form.low else (8 if form.bits == 4 else 128)
    if q.dtype == np.int8:
        q, zero = q.view(np.uint8) + np.uint8(128), zero + 128
    if form.low and low is None:
        low = scale * np.float32(-zero)
    elif not form.low and zero != fill:
        q = q + np.uint8(fill - zero)
    steps = _filled(q.reshape(rows, -1), fill).reshape(blocks, 2, 16, groups, 8, 4).transpose(0, 3, 1, 4, 2, 5)
    packed = out[:, :, : form.codes_bytes]
    if form.bits == 4:
        steps = steps[:, :, :, 0::2] | (steps[:, :, :, 1::2] << 4)
    packed[:] = steps.reshape(packed.shape)
    begin = form.codes_bytes
    for side in (scale, low):
        if side is not None:
            values = _filled(side.reshape(rows, -1)).reshape(blocks, 32, groups, -1).transpose(0, 2, 3, 1)
            made = np.ascontiguousarray(values, np.float16 if form.scale_bytes == 2 else np.float32)
            out[:, :, begin : begin + form.side_bytes] = made.reshape(blocks, groups, -1).view(np.uint8)
            begin += form.side_bytes


def _matrix(weights: Weights, name: str) -> Blocks:
    found = weights.blocks(name)
    if found is None:
        found = matrix_blocks("F32", weights.float32(name))
    assert found is not None, f"{name} is no matrix"
    return found


def names(arch: Architecture) -> list[str]:
    """The matrices in the order of the table. A feed-forward part without a gate has its other matrix twice."""
    head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
    parts = LAYER if arch.gated else tuple("mlp.up_proj" if p == "mlp.gate_proj" else p for p in LAYER)
    layers = [f"model.layers.{i}.{part}.weight" for i in range(arch.layers) for part in parts]
    return ["model.embed_tokens.weight", head, *layers]


def pack(
    arch: Architecture, weights: Weights, *, key: str | None = None, threads: int = 1, exact: bool = False
) -> Packed:
    """Packs a model. With `key` (the model's hash) a large one is kept in the workspace's cache and mapped.

    With `exact` quantised weights are multiplied with float32 activations: slowly, for comparisons.
    """
    wanted = names(arch)
    table, end = _table(arch, weights)
    if key and arch.parameters > CACHE_ABOVE:
        buffer = _cached(f"{key[:32]}-{LAYOUT}", end, lambda out: _fill(out, weights, wanted, table, threads))
    else:
        buffer = arena(end)
        _fill(buffer, weights, wanted, table, threads)
    placed = table.copy()
    placed[:, DATA] += buffer.ctypes.data
    placed[:, CODED] = (table[:, STORAGE] >= QUANTISED) & (not exact)
    routines = [EXACT if exact and row[STORAGE] >= QUANTISED else PRODUCTS[row[STORAGE]] for row in table]
    placed[:, ROUTINE] = [routine.address for routine in routines]
    return Packed(buffer, placed)


def packed_bytes(arch: Architecture, weights: Weights) -> int:
    """Memory that `pack` will need."""
    return _table(arch, weights)[1]


def _table(arch: Architecture, weights: Weights) -> tuple[Ints, int]:
    """Where each matrix will lie in the buffer, and the bytes of it all."""
    wanted, rows, end = names(arch), list[Ints](), 0
    for index, name in enumerate(wanted):
        if (before := wanted.index(name)) < index:
            rows.append(rows[before])
            continue
        row, end = _shape(_kind(weights, name), weights.shape(name), -(-end // 64) * 64)
        rows.append(row)
    return np.stack(rows), end


def refill(packed: Packed, arch: Architecture, weights: Weights, *, threads: int = 1) -> None:
    """Packs other weights of the same shapes and kinds into the same place.

    Raises UsageError, before anything is written, for a matrix that is kept in another precision.
    """
    wanted, rows = names(arch), packed.table.copy()
    rows[:, DATA] -= packed.buffer.ctypes.data
    rows[:, [CODED, ROUTINE]] = 0
    for name, row in zip(wanted, rows, strict=True):
        made, _ = _shape(_kind(weights, name), weights.shape(name), int(row[DATA]))
        if not np.array_equal(made, row):
            raise UsageError("new weights must have the precisions of the old", where=name)
    _fill(packed.buffer, weights, wanted, rows, threads)


def _kind(weights: Weights, name: str) -> str:
    found = weights.blocks(name)
    return found.kind if found else "F32"


def _fill(buffer: Bytes, weights: Weights, wanted: Sequence[str], table: Ints, threads: int) -> None:
    jobs = [(n, row) for i, (n, row) in enumerate(zip(wanted, table, strict=True)) if wanted.index(n) == i]
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda job: _write(_matrix(weights, job[0]), job[1], buffer), jobs)
        for _ in events.track(done, "pack", len(jobs), "matrices"):
            pass


def _cached(name: str, size: int, fill: Any) -> Bytes:
    """The packed bytes as a mapped file, written on first use."""
    path = store.cache_dir() / "packed" / f"{name}.bin"
    with store.lock(path):
        if not path.exists() or path.stat().st_size != size:
            with store.atomic_file(path, "wb") as file:
                file.truncate(size)
                target = np.memmap(file, np.uint8, "r+", shape=(size,))
                fill(target)
                target.flush()
                del target  # some systems do not rename a mapped file
        store.prune(path)
    return np.memmap(path, np.uint8, "c", shape=(size,))  # what `refill` writes stays in this process
