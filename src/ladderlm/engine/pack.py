"""Weights as the kernels read them: every GGUF format and every float, without loss, in blocks of 32 rows.

A matrix of `rows` x `cols` becomes blocks of 32 rows; a block holds, for k ascending, the 32 rows' weights side by
side (4 bits: a byte carries k in its low and k + 1 in its high nibble), so two vector loads give one k of 32 rows.
Beside it lie a float32 scale and, for some formats, a minimum for each row and group of 16 or 32 k:
weight = scale * q + minimum. Rows are padded to 32 and columns to 32 with zeros. All matrices share one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ladderlm import events, store
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Blocks, Weights, matrix_blocks
from ladderlm.types import FloatArray

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
Codes = tuple[npt.NDArray[Any], FloatArray | None, FloatArray | None]


def padded(n: int) -> int:
    """`n` rounded up to a multiple of 32."""
    return -(-n // 32) * 32


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """All matrices of a model: `table[i]` describes matrix i of `buffer`, which must outlive the kernels' calls."""

    buffer: Bytes
    table: npt.NDArray[np.int64]


# --- GGUF blocks to codes: integers, scales, minima ---------------------------------------------------------------


def _half(blocks: Bytes, at: int) -> FloatArray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    return np.concatenate([blocks[:, at : at + 16] & 15, blocks[:, at : at + 16] >> 4], axis=1)


def _five(blocks: Bytes, at: int) -> npt.NDArray[Any]:
    return _nibbles(blocks, at + 4) | np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _sub_blocks(blocks: Bytes) -> tuple[FloatArray, FloatArray, Bytes]:
    """Q4_K and Q5_K: (n, 8) scales and minima, and (n, 8, 32) low nibbles, from bytes 4-15 and the last 128."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1).astype(np.float32)
    low = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1).astype(np.float32)
    runs = blocks[:, -128:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)
    return _half(blocks, 0) * scale, -_half(blocks, 2) * low, codes


def _codes(kind: str, blocks: Bytes) -> Codes:
    """Codes (one row of k per block), scales and minima of blocks (n, bytes per block); see models/quants.py."""
    if kind == "Q4_0":
        scale = _half(blocks, 0)
        return _nibbles(blocks, 2), scale, scale * np.float32(-8)
    if kind == "Q4_1":
        return _nibbles(blocks, 4), _half(blocks, 0), _half(blocks, 2)
    if kind == "Q5_0":
        return _five(blocks, 2).view(np.int8) - np.int8(16), _half(blocks, 0), None
    if kind == "Q5_1":
        return _five(blocks, 4), _half(blocks, 0), _half(blocks, 2)
    if kind == "Q8_0":
        return blocks[:, 2:], _half(blocks, 0), None
    if kind == "Q6_K":
        low = blocks[:, :128].reshape(-1, 2, 64)
        high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
        q = np.concatenate([low & 15, low >> 4], axis=2) | (high << 4).reshape(-1, 2, 128)
        return q.view(np.int8) - np.int8(32), _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None
    scale, minimum, q = _sub_blocks(blocks)
    if kind == "Q5_K":
        q |= (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return q, scale, minimum


# --- Into the buffer ----------------------------------------------------------------------------------------------

_FLOATS = {"F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2)}
_SIXTEENS, _WITH_LOW = ("Q6_K",), ("Q4_0", "Q4_1", "Q4_K", "Q5_1", "Q5_K")


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
    size = matrix.data.shape[1] * (256 if matrix.kind.endswith("_K") else 32) // matrix.cols
    q, scale, low = _codes(matrix.kind, np.ascontiguousarray(matrix.data).reshape(-1, size))
    codes = _across(np.ascontiguousarray(q).view(np.uint8).reshape(matrix.rows, width), matrix.rows)
    if STORAGES[row[STORAGE]] == "q4":
        np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, out=out.reshape(blocks, width // 2, 32))
    else:
        out.reshape(blocks, width, 32)[:] = codes
    for side, at in ((scale, SCALE), (low, LOW)):
        if side is not None:
            groups = width // int(row[GROUP])
            view = buffer[int(row[at]) : int(row[at]) + 4 * 32 * blocks * groups].view(np.float32)
            view.reshape(blocks, groups, 32)[:] = _across(side.reshape(matrix.rows, groups), matrix.rows)


def _matrix(weights: Weights, name: str) -> Blocks:
    found = weights.blocks(name) or matrix_blocks("F32", weights.float32(name))
    assert found is not None, f"{name} is no matrix"
    return found


def names(arch: Architecture) -> list[str]:
    """The matrices in the order of the table."""
    head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
    layers = [f"model.layers.{i}.{part}.weight" for i in range(arch.layers) for part in LAYER]
    return ["model.embed_tokens.weight", head, *layers]


def pack(arch: Architecture, weights: Weights, *, key: str | None = None, threads: int = 1) -> Packed:
    """Packs a model. With `key` (the model's hash) a large one is kept in the workspace's cache and mapped."""
    wanted = names(arch)
    kinds = [_kind(weights, name) for name in wanted]
    rows: list[npt.NDArray[np.int64]] = []
    end = 4 * CONSTANTS
    for index, (name, kind) in enumerate(zip(wanted, kinds, strict=True)):
        if index == HEAD and arch.tied:
            rows.append(rows[EMBED])
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


def _kind(weights: Weights, name: str) -> str:
    found = weights.blocks(name)
    return found.kind if found else "F32"


def _fill(
    buffer: Bytes, weights: Weights, wanted: Sequence[str], table: npt.NDArray[np.int64], threads: int
) -> None:
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
    return np.memmap(path, np.uint8, "r", shape=(size,))
