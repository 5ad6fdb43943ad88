"""Weights as the kernels read them: GGUF's formats and floats, without loss, in blocks of 32 rows.

A matrix of `rows` x `cols` becomes blocks of 32 rows; a block holds, for k ascending, the 32 rows' weights side by
side (4 bits: a byte carries k in its low and k + 1 in its high nibble), so two vector loads give one k of 32 rows.
Beside it lie a float32 scale and, for some formats, a minimum for each row and group of 16 or 32 k:
weight = scale * q + minimum. Rows are padded to 32 and columns to 32 with zeros. All matrices share one buffer.
A format with minima for groups of 16 (Q2_K) does not fit this and is packed as float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ladderlm import events, store
from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.quants import KINDS, codes
from ladderlm.models.weights import Blocks, Weights, matrix_blocks

LAYOUT = 1  # raise when the bytes below change: it names the cached files
CACHE_ABOVE = 600_000_000  # weights; packing fewer takes under about two seconds, and reading a cache is no faster
STORAGES = ("f32", "f16", "bf16", "q8", "q4")
CONSTANTS = 64  # floats at the start of the buffer: 32 ones, 32 zeros

# Columns of the table that tells the kernels where a matrix is; addresses and steps in bytes.
STORAGE, BLOCKS, COLS, GROUP, DATA, DATA_STEP, SCALE, SCALE_STEP, SCALE_BLOCK, LOW, LOW_STEP, LOW_BLOCK = range(12)
LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
EMBED, HEAD, FIRST = 0, 1, 2  # rows of the table: embedding, output head, then len(LAYER) rows a layer

Bytes = npt.NDArray[np.uint8]


def padded(n: int) -> int:
    """`n` rounded up to a multiple of 32."""
    return -(-n // 32) * 32


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """All matrices of a model: `table[i]` describes matrix i of `buffer`, which must outlive the kernels' calls."""

    buffer: Bytes
    table: npt.NDArray[np.int64]


# --- Into the buffer ----------------------------------------------------------------------------------------------

_FLOATS = {"F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2)}
_SIXTEENS, _WITH_LOW = ("Q3_K", "Q6_K"), ("Q4_0", "Q4_1", "Q4_K", "Q5_1", "Q5_K")
_UNPACKABLE = ("Q2_K",)


def _shape(kind: str, shape: tuple[int, ...], start: int) -> tuple[npt.NDArray[np.int64], int]:
    """The table row of a matrix whose data begins at byte `start` (addresses relative), and the byte after it."""
    row = np.zeros(12, np.int64)
    blocks, width = padded(shape[0]) // 32, padded(shape[1])
    group = 16 if kind in _SIXTEENS else 32
    storage, bits = (_FLOATS[kind][0], 8 * _FLOATS[kind][1]) if kind in _FLOATS else ("q4", 4)
    if kind not in _FLOATS and not kind.startswith("Q4"):
        storage, bits = "q8", 8
    row[[STORAGE, BLOCKS, COLS, GROUP, DATA]] = STORAGES.index(storage), blocks, width, group, start
    row[DATA_STEP] = 32 * width * bits // 8
    end = start + blocks * int(row[DATA_STEP])
    side = 128 * width // group  # bytes of scales for a block
    row[LOW] = 128
    for here, step, block, present in (
        (SCALE, SCALE_STEP, SCALE_BLOCK, kind not in _FLOATS),
        (LOW, LOW_STEP, LOW_BLOCK, kind in _WITH_LOW),
    ):
        if present:
            row[[here, step, block]] = end, 128, side
            end += blocks * side
    return row, end


def _across(values: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """(rows, n) to (blocks, n, 32), the last block filled up with zeros."""
    if rows % 32:
        values = np.concatenate([values, np.zeros((padded(rows) - rows, values.shape[1]), values.dtype)])
    return values.reshape(-1, 32, values.shape[1]).transpose(0, 2, 1)


def _write(matrix: Blocks, row: npt.NDArray[np.int64], buffer: Bytes) -> None:
    """Packs `matrix` where `row` says."""
    start, blocks, width = int(row[DATA]), int(row[BLOCKS]), int(row[COLS])
    out = buffer[start : start + blocks * int(row[DATA_STEP])]
    if matrix.kind in _FLOATS:
        dtype = np.uint32 if matrix.kind == "F32" else np.uint16
        values = np.ascontiguousarray(matrix.data).view(dtype)
        if width != matrix.cols:
            values = np.pad(values, ((0, 0), (0, width - matrix.cols)))
        out.view(dtype).reshape(blocks, width, 32)[:] = _across(values, matrix.rows)
        return
    q, zero, scale, low = codes(matrix.kind, np.ascontiguousarray(matrix.data).reshape(-1, KINDS[matrix.kind].bytes))
    if STORAGES[row[STORAGE]] == "q4":
        across = _across(q.reshape(matrix.rows, width), matrix.rows)
        np.bitwise_or(across[:, 0::2], across[:, 1::2] << 4, out=out.reshape(blocks, width // 2, 32))
        low = scale * np.float32(-zero) if low is None else low
    else:
        signed = q.view(np.int8) - np.int8(zero)
        out.view(np.int8).reshape(blocks, width, 32)[:] = _across(signed.reshape(matrix.rows, width), matrix.rows)
    for side, at in ((scale, SCALE), (low, LOW)):
        if side is not None:
            groups = width // int(row[GROUP])
            view = buffer[int(row[at]) : int(row[at]) + 4 * 32 * blocks * groups].view(np.float32)
            view.reshape(blocks, groups, 32)[:] = _across(side.reshape(matrix.rows, groups), matrix.rows)


def _matrix(weights: Weights, name: str) -> Blocks:
    found = weights.blocks(name)
    if found is None or found.kind in _UNPACKABLE:
        found = matrix_blocks("F32", weights.float32(name))
    assert found is not None, f"{name} is no matrix"
    return found


def names(arch: Architecture) -> list[str]:
    """The matrices in the order of the table. A feed-forward part without a gate has its other matrix twice."""
    head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
    parts = LAYER if arch.gated else tuple("mlp.up_proj" if p == "mlp.gate_proj" else p for p in LAYER)
    layers = [f"model.layers.{i}.{part}.weight" for i in range(arch.layers) for part in parts]
    return ["model.embed_tokens.weight", head, *layers]


def pack(arch: Architecture, weights: Weights, *, key: str | None = None, threads: int = 1) -> Packed:
    """Packs a model. With `key` (the model's hash) a large one is kept in the workspace's cache and mapped."""
    wanted = names(arch)
    kinds = [_kind(weights, name) for name in wanted]
    rows: list[npt.NDArray[np.int64]] = []
    end = 4 * CONSTANTS
    for index, (name, kind) in enumerate(zip(wanted, kinds, strict=True)):
        if (before := wanted.index(name)) < index:
            rows.append(rows[before])
            continue
        row, end = _shape(kind, weights.shape(name), -(-end // 64) * 64)
        rows.append(row)
    table = np.stack(rows)
    if key and arch.parameters > CACHE_ABOVE:
        buffer = _cached(f"{key[:32]}-{LAYOUT}", end, lambda out: _fill(out, weights, wanted, table, threads))
    else:
        buffer = np.empty(end, np.uint8)
        _fill(buffer, weights, wanted, table, threads)
    placed = table.copy()
    placed[:, [DATA, SCALE, LOW]] += buffer.ctypes.data
    return Packed(buffer, placed)


def refill(packed: Packed, arch: Architecture, weights: Weights, *, threads: int = 1) -> None:
    """Packs other weights of the same shapes and kinds into the same place.

    Raises UsageError, before anything is written, for a matrix that is kept in another precision.
    """
    wanted, rows = names(arch), packed.table.copy()
    rows[:, [DATA, SCALE, LOW]] -= packed.buffer.ctypes.data
    for name, row in zip(wanted, rows, strict=True):
        made, _ = _shape(_kind(weights, name), weights.shape(name), int(row[DATA]))
        if not np.array_equal(made, row):
            raise UsageError("new weights must have the precisions of the old", where=name)
    _fill(packed.buffer, weights, wanted, rows, threads)


def _kind(weights: Weights, name: str) -> str:
    found = weights.blocks(name)
    return found.kind if found and found.kind not in _UNPACKABLE else "F32"


def _fill(buffer: Bytes, weights: Weights, wanted: Sequence[str], table: npt.NDArray[np.int64], threads: int) -> None:
    buffer[: 4 * CONSTANTS].view(np.float32)[:] = np.repeat(np.array([1, 0], np.float32), 32)
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
    return np.memmap(path, np.uint8, "c", shape=(size,))  # what `refill` writes stays in this process
