"""safetensors files (8 bytes of length, a JSON header, the data), read by memory map and written as a stream."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import FormatError, NotFound
from ladderlm.models.quants import Bytes
from ladderlm.models.weights import Blocks, matrix_blocks
from ladderlm.types import FloatArray

_MAX_HEADER = 64 * 2**20
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4",
          "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}  # fmt: skip
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: `dtype` as safetensors spells it, `data` a view of the mapped bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def array(self) -> np.ndarray:
        """As numpy holds it (BF16 widened to float32)."""
        if self.dtype == "BF16":
            return (self.data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(self.shape)
        return self.data.view(_NUMPY[self.dtype]).reshape(self.shape)


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file, mapped. NotFound, or FormatError when the header does not fit the file."""
    path = Path(path)
    try:
        with path.open("rb") as f:
            mapped = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound("no such file", where=str(path)) from None
    except ValueError:
        raise FormatError("the file is empty", where=str(path)) from None

    def fail(what: str) -> FormatError:
        return FormatError(what, where=str(path), cure="the file is damaged: fetch or write it again")

    if len(mapped) < 8:
        raise fail("not a safetensors file")
    length = struct.unpack("<Q", mapped[:8].tobytes())[0]
    if length > min(len(mapped) - 8, _MAX_HEADER):
        raise fail("not a safetensors file, or cut off inside its header")
    try:
        header = json.loads(mapped[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        entries = [(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise fail("the safetensors header is not sound") from None
    body, tensors, reached = mapped[8 + length :], {}, 0
    for entry in entries:
        if len(entry) != 5 or not all(_count(v) for v in (*entry[2], *entry[3:])) or entry[1] not in _SIZES:
            raise fail(f"the tensor {entry[0]!r} is of an unknown type or shape")
    for name, dtype, shape, start, end in sorted(entries, key=lambda e: e[3]):
        size = _SIZES[dtype]
        for extent in shape:
            size *= extent
        if start != reached or end - start != size or end > len(body):
            raise fail(f"the tensor {name!r} lies outside the file or over another")
        reached = end
        tensors[name] = StoredTensor(dtype, shape, body[start:end])
    return tensors


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]], dtype: str = "float32"
) -> None:
    """Writes floating tensors as `dtype`; integers keep their type. Data is copied once, tensor by tensor."""
    items = list(tensors.items()) if isinstance(tensors, Mapping) else list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, value in items:
        kind = _stored_dtype(value, dtype)
        size = value.size * _SIZES[kind]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, value in items:
            f.write(np.ascontiguousarray(_as_stored(value, _stored_dtype(value, dtype))).data)


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a float tensor of `shape` written as `dtype`."""
    return int(np.prod(shape, dtype=np.int64)) * _SIZES[DTYPES[dtype]]


def _stored_dtype(value: np.ndarray, dtype: str) -> str:
    if value.dtype.kind == "f":
        return DTYPES[dtype]
    return next(k for k, n in _NUMPY.items() if np.dtype(n) == value.dtype)


def _as_stored(value: np.ndarray, kind: str) -> np.ndarray:
    if kind != "BF16":
        return value.astype(_NUMPY[kind], copy=False)
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    even = ((bits >> 16) & 1) + np.uint32(0x7FFF)  # round to nearest, ties to even
    rounded = ((bits + even) >> 16).astype("<u2")
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded).astype("<u2", copy=False)


class SafetensorsWeights:
    """The tensors of one or several safetensors files."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._get(name).shape

    def float32(self, name: str) -> FloatArray:
        return self._get(name).array().astype(np.float32, copy=False)

    def blocks(self, name: str) -> Blocks | None:
        tensor = self._get(name)
        if tensor.dtype in ("F32", "F16", "BF16") and len(tensor.shape) == 2:
            return Blocks(tensor.dtype, *tensor.shape, tensor.data.reshape(tensor.shape[0], -1))
        return matrix_blocks("F32", self.float32(name))

    def _get(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise NotFound(f"the model has no tensor {name!r}") from None
