"""safetensors files (8 bytes of length, a JSON header, the data), read by memory map and written as a stream."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import FormatError, NotFound
from ladderlm.models.arch import Shapes
from ladderlm.models.bounded import MAX_JSON, map_file, parse_json, shown
from ladderlm.models.families.stored import Stored
from ladderlm.models.packed_ints import PackedMatrix, part_blocks
from ladderlm.models.quants import Bytes, bfloat16
from ladderlm.models.weights import Blocks, matrix_blocks
from ladderlm.types import FloatArray

_MAX_DIMS = 8
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4",
          "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: `dtype` as safetensors spells it, `data` a view of the mapped bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def raw(self) -> np.ndarray:
        """As stored, a view; BF16 as the upper halves of float32 in uint16."""
        return self.data.view(_NUMPY.get(self.dtype, "<u2")).reshape(self.shape)

    def array(self) -> np.ndarray:
        """As numpy holds it: floats of 16 or 64 bits as float32."""
        return widened(self.raw(), self.dtype) if self.dtype in _FLOATS else self.raw()


def widened(values: np.ndarray, dtype: str) -> FloatArray:
    """Stored values of a safetensors `dtype` as float32."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def read_safetensors(path: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a file, mapped. NotFound, or FormatError when the header does not fit the file."""
    path = Path(path)
    mapped = map_file(path)

    def fail(what: str) -> FormatError:
        return FormatError(what, where=str(path), cure="the file is damaged: fetch or write it again")

    if len(mapped) < 8:
        raise fail("not a safetensors file")
    length = struct.unpack("<Q", mapped[:8].tobytes())[0]
    if length > min(len(mapped) - 8, MAX_JSON):
        raise fail("not a safetensors file, or cut off inside its header")
    header = parse_json(mapped[8 : 8 + length].tobytes(), str(path))
    if not isinstance(header, dict):
        raise fail("the safetensors header is not sound")
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        if not _sound(entry):
            raise fail(f"the tensor '{shown(name)}' is of an unknown type or shape")
        entries.append((name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]))
    body, tensors, reached = mapped[8 + length :], {}, 0
    for name, dtype, shape, start, end in sorted(entries, key=lambda e: e[3:]):
        size = _SIZES[dtype]
        for extent in shape:
            size *= extent
        if start != reached or end - start != size or end > len(body):
            raise fail(f"the tensor '{shown(name)}' lies outside the file or over another")
        reached = end
        tensors[name] = StoredTensor(dtype, shape, body[start:end])
    if reached != len(body):
        raise fail("bytes of the file belong to no tensor")
    return tensors


def _sound(entry: Any) -> bool:
    """Whether a tensor's entry in the header has the right form."""
    if not isinstance(entry, dict):
        return False
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(shape, list) or not isinstance(offsets, list) or not isinstance(dtype, str):
        return False
    counts = all(map(_count, [*shape, *offsets]))
    return counts and len(shape) <= _MAX_DIMS and len(offsets) == 2 and dtype in _SIZES


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]], dtype: str = "float32"
) -> None:
    """Writes floating tensors as `dtype`; integers keep their type. Data is copied once, tensor by tensor."""
    held = dict(tensors)
    entries = {name: (_stored_dtype(value, dtype), value.shape) for name, value in held.items()}
    _write(path, entries, held.__getitem__)


def stream_safetensors(path: Path, shapes: Shapes, get: Callable[[str], np.ndarray], dtype: str = "float32") -> None:
    """Writes float tensors as `dtype`, asking `get` for one at a time: no more than that one is in memory."""
    _write(path, {name: (DTYPES[dtype], shape) for name, shape in shapes.items()}, get)


def _write(path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], get: Callable[[str], np.ndarray]) -> None:
    """A file of tensors of the given safetensors dtype and shape."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape) in entries.items():
        size = int(np.prod(shape, dtype=np.int64)) * _SIZES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, (kind, _) in entries.items():
            f.write(np.ascontiguousarray(_as_stored(get(name), kind)).data)


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
    return bfloat16(value)


class SafetensorsWeights:
    """The canonical tensors of a model in one or several safetensors files, whatever its family calls them."""

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor | PackedMatrix],
        layout: Sequence[Stored],
        shapes: Shapes,
        where: str = "",
    ) -> None:
        self._shapes = shapes
        self._source: dict[str, tuple[StoredTensor | PackedMatrix, Stored]] = {}
        for stored in layout:
            # A file of the bare body lacks the first part of the names: wte.weight for transformer.wte.weight.
            names = stored.name, stored.name.partition(".")[2], *stored.also
            tensor = next((tensors[name] for name in names if name in tensors), None)
            if tensor is None:
                raise FormatError(f"the tensor {stored.name!r} is missing", where=where)
            if (wanted := stored.shape(shapes)) != tensor.shape:
                raise FormatError(f"{stored.name} has shape {tensor.shape}, not {wanted}", where=where)
            self._source |= dict.fromkeys(stored.parts, (tensor, stored))

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        self._get(name)
        return self._shapes[name]

    def float32(self, name: str) -> FloatArray:
        tensor, stored = self._get(name)
        part = widened(stored.part(tensor.raw(), name, self._shapes), tensor.dtype)
        return np.ascontiguousarray(part - np.float32(stored.plus) if stored.plus else part)

    def blocks(self, name: str) -> Blocks | None:
        tensor, stored = self._get(name)
        if isinstance(tensor, PackedMatrix) and (found := part_blocks(tensor, stored, name, self._shapes)):
            return found
        if len(self._shapes[name]) != 2 or stored.plus or tensor.dtype not in ("F32", "F16", "BF16"):
            return matrix_blocks("F32", self.float32(name))
        return matrix_blocks(tensor.dtype, stored.part(tensor.raw(), name, self._shapes))

    def _get(self, name: str) -> tuple[StoredTensor | PackedMatrix, Stored]:
        try:
            return self._source[name]
        except KeyError:
            raise NotFound(f"the model has no tensor {name!r}") from None
