"""GGUF files (ggml's specification, version 3), written as a stream: one tensor in memory at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ladderlm import events, store
from ladderlm.errors import UsageError
from ladderlm.models.quants import KINDS, Bytes, row_bytes

_NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A tensor to be written: `shape` in numpy order; `data()` yields its bytes, in the blocks of `kind`, in pieces."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[Bytes]]

    @property
    def bytes(self) -> int:
        size = row_bytes(self.kind, self.shape[-1])
        for extent in self.shape[:-1]:
            size *= extent
        return size


def write_gguf(path: str | Path, meta: Mapping[str, Any], tensors: Sequence[Entry]) -> None:
    """Writes the file whole or not at all.

    Metadata: text, truth values, lists of one type, and numbers. A numpy scalar or array keeps its type; a Python
    integer becomes uint32, else int32, uint64 or int64, whichever holds it first (in lists int32, else int64), a
    Python float float32. UsageError for anything else, for a tensor named twice, and for an odd `general.alignment`.
    """
    alignment = meta.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise UsageError(f"general.alignment must be a power of two of at least 8, not {alignment!r}")
    if len({t.name for t in tensors}) < len(tensors):
        raise UsageError("two tensors have one name", where=str(path))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    header += b"".join(_string(key) + _typed(key, value) for key, value in meta.items())
    at = 0
    for tensor in tensors:
        header += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        header += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", KINDS[tensor.kind].number, at)
        at += _padded(tensor.bytes, alignment)
    with store.atomic_file(Path(path), "wb") as file:
        file.write(header.ljust(_padded(len(header), alignment), b"\0"))
        for tensor in events.track(tensors, "write", len(tensors), "tensors"):
            _write(file, tensor, alignment)


def _write(file: IO[bytes], tensor: Entry, alignment: int) -> None:
    written = sum(file.write(np.ascontiguousarray(piece).data) for piece in tensor.data())
    if written != tensor.bytes:
        raise UsageError(f"the tensor {tensor.name!r} has {written} bytes, not {tensor.bytes}")
    file.write(bytes(_padded(written, alignment) - written))


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(key: str, value: Any) -> bytes:
    """The type's number and the value."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    array = _array(key, value)
    number = struct.pack("<I", _NUMBERS[array.dtype.str[1:]])
    if array.ndim == 0:
        return number + array.tobytes()
    return struct.pack("<I", _ARRAY) + number + struct.pack("<Q", len(array)) + array.tobytes()


def _array(key: str, value: Any) -> np.ndarray:
    """A number or a list of numbers in the type it is stored as, little endian."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
    else:
        items = value if isinstance(value, (list, tuple)) else (value,)
        array = np.array(value, _type(key, items, ("i4", "i8") if items is value else ("u4", "i4", "u8", "i8")))
    if array.dtype.str[1:] not in _NUMBERS or array.ndim > 1:
        raise UsageError(f"GGUF cannot hold the value of {key!r} ({array.dtype}, {array.ndim} dimensions)")
    return array.astype(array.dtype.newbyteorder("<"))


def _type(key: str, items: Iterable[Any], integers: Sequence[str]) -> str:
    """The stored type of Python numbers."""
    kinds = {type(item) for item in items}
    if kinds == {bool}:
        return "?"
    if kinds == {int}:
        fits = [t for t in integers if all(np.iinfo(t).min <= i <= np.iinfo(t).max for i in items)]
        if fits:
            return fits[0]
    elif kinds and kinds <= {int, float}:
        return "f4"
    raise UsageError(f"GGUF cannot hold the value of {key!r}", cure="text, numbers, truth values or lists of one type")
