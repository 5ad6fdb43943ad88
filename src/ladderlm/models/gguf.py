"""GGUF files (ggml's specification, versions 2 and 3), read by memory map.

Every count and length is checked against what is left of the file before it is believed, so that a hostile file
costs neither memory nor time: it is a FormatError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.errors import FormatError
from ladderlm.models.bounded import map_file, shown
from ladderlm.models.quants import KINDS, NUMBERS, Bytes, row_bytes

_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_KEYS, _MAX_TENSORS, _MAX_WEIGHTS = 4096, 65536, 2**40
_MAX_STRINGS, _MAX_TEXT = 2**20, 2**25  # a vocabulary of 256,000 tokens and its merges: 800,000 of 8 MB


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """`shape` in numpy order, the last extent being a row's; `offset` from the start of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class GGUF:
    """An open file: metadata and tensors; `data(name)` is a view of the mapped bytes."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    bytes: int
    mapped: Bytes = field(repr=False)

    def data(self, name: str) -> Bytes:
        """The tensor's bytes, (rows, bytes per row); all extents but the last make rows."""
        t = self.tensors[name]
        return self.mapped[t.offset : t.offset + t.size].reshape(-1, row_bytes(t.kind, t.shape[-1]))


class _Reader:
    """A cursor over the mapped file that refuses to leave it."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at, self.strings, self.text_bytes = data, path, 0, 0, 0

    def fail(self, what: str) -> FormatError:
        return FormatError(what, where=str(self.path), cure="the file is damaged or no GGUF: fetch it again")

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise self.fail("the file ends inside its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def text(self) -> str:
        self.strings += 1
        size = self.u64()
        self.text_bytes += size
        if self.strings > _MAX_STRINGS or self.text_bytes > _MAX_TEXT:
            raise self.fail("the header holds too many strings")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise self.fail("the header holds text that is not UTF-8") from None

    def texts(self, count: int) -> list[str]:
        """`count` times `text`, in half the time: vocabularies are most of opening a file."""
        data, at, size_at = self.data, self.at, struct.Struct("<Q").unpack_from
        most = at + 8 * count + _MAX_TEXT - self.text_bytes
        found: list[str] = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + size_at(data, at)[0]
                if at > len(data):
                    raise self.fail("the file ends inside its header")
                if at > most:
                    raise self.fail("the header holds too many strings")
                found.append(str(data[start:at], "utf-8"))
        except UnicodeDecodeError:
            raise self.fail("the header holds text that is not UTF-8") from None
        except struct.error:
            raise self.fail("the file ends inside its header") from None
        self.strings += count
        self.text_bytes += at - self.at - 8 * count
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise self.fail(f"unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def array(self) -> Any:
        """A list of strings or a numpy array."""
        kind, count = self.u32(), self.u64()
        if kind == _STRING:
            if count * 8 > len(self.data) - self.at:
                raise self.fail("an array is longer than the file")
            if self.strings + count > _MAX_STRINGS:  # said before, not after, reading millions of them
                raise self.fail("the header holds too many strings")
            return self.texts(count)
        if kind not in _SCALARS:
            raise self.fail(f"unknown array type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def read_gguf(path: str | Path) -> GGUF:
    """Opens a GGUF file. NotFound when it is not there, FormatError when it is not sound."""
    path = Path(path)
    mapped = map_file(path)
    r = _Reader(memoryview(mapped), path)  # type: ignore[arg-type]
    if bytes(r.take(4)) != b"GGUF":
        raise r.fail("not a GGUF file")
    version = r.u32()
    if version not in (2, 3):
        raise FormatError(f"GGUF version {version} is not supported", where=str(path), cure="convert it to version 3")
    tensor_count, key_count = r.u64(), r.u64()
    if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
        raise r.fail(f"absurd counts in the header: {tensor_count} tensors, {key_count} keys")
    meta: dict[str, Any] = {}
    for _ in range(key_count):
        key = r.text()
        if key in meta:
            raise r.fail(f"the key '{shown(key)}' appears twice")
        meta[key] = r.value(r.u32())
    return GGUF(path, meta, _tensors(r, tensor_count, meta), len(mapped), mapped)


def _tensors(r: _Reader, count: int, meta: dict[str, Any]) -> dict[str, GGUFTensor]:
    alignment = meta.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise r.fail(f"absurd alignment '{shown(str(alignment))}'")
    raw = [_tensor(r) for _ in range(count)]
    start = -(-r.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    end_of_last = start
    for t in sorted(raw, key=lambda t: t.offset):
        if t.name in tensors:
            raise r.fail(f"the tensor '{shown(t.name)}' appears twice")
        offset = start + t.offset
        if t.offset % alignment or offset < end_of_last or offset + t.size > len(r.data):
            raise r.fail(f"the tensor '{shown(t.name)}' lies outside the file or over another")
        end_of_last = offset + t.size
        tensors[t.name] = GGUFTensor(t.name, t.kind, t.shape, offset, t.size)
    return tensors


def _tensor(r: _Reader) -> GGUFTensor:
    name, dims = r.text(), r.u32()
    if not 1 <= dims <= 4:
        raise r.fail(f"the tensor '{shown(name)}' has {dims} dimensions")
    sizes = [r.u64() for _ in range(dims)]
    number, offset = r.u32(), r.u64()
    if number not in NUMBERS:
        raise FormatError(
            f"the tensor '{shown(name)}' has format {number}, which is not supported",
            where=str(r.path),
            cure="quantise it again to one of: " + ", ".join(KINDS),
        )
    weights = 1
    for size in sizes:
        weights *= size
    if not 0 < weights < _MAX_WEIGHTS:
        raise r.fail(f"the tensor '{shown(name)}' has the absurd shape {sizes}")
    kind = NUMBERS[number]
    if sizes[0] % KINDS[kind].weights:
        raise r.fail(f"the rows of '{shown(name)}' end inside a {kind} block")
    size = weights // sizes[0] * row_bytes(kind, sizes[0])
    return GGUFTensor(name, kind, tuple(reversed(sizes)), offset, size)
