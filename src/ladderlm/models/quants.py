"""The block formats of GGUF: how bytes become float32.

Every format stores a row as consecutive blocks (ggml's `block_*` structs, little endian). `d` is a float16 scale,
`m` a float16 minimum; K formats hold 256 weights with 6-bit (or 8-bit) scales of sub-blocks. All arithmetic is
float32 in the order of the reference, so results agree with it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm.errors import FormatError, nearest
from ladderlm.types import FloatArray

Bytes = npt.NDArray[np.uint8]


class Kind(NamedTuple):
    """A tensor format: GGUF's type number, weights per block, bytes per block."""

    number: int
    weights: int
    bytes: int


KINDS: dict[str, Kind] = {
    "F32": Kind(0, 1, 4),
    "F16": Kind(1, 1, 2),
    "BF16": Kind(30, 1, 2),
    "Q4_0": Kind(2, 32, 18),
    "Q4_1": Kind(3, 32, 20),
    "Q5_0": Kind(6, 32, 22),
    "Q5_1": Kind(7, 32, 24),
    "Q8_0": Kind(8, 32, 34),
    "Q4_K": Kind(12, 256, 144),
    "Q5_K": Kind(13, 256, 176),
    "Q6_K": Kind(14, 256, 210),
}
NUMBERS = {kind.number: name for name, kind in KINDS.items()}


def row_bytes(kind: str, cols: int) -> int:
    """Bytes of a row of `cols` weights. FormatError when `cols` is not a whole number of blocks."""
    _, weights, size = KINDS[kind]
    if cols % weights:
        raise FormatError(f"{kind} rows must hold a multiple of {weights} weights, not {cols}")
    return cols // weights * size


def dequantise(kind: str, data: Bytes, cols: int) -> FloatArray:
    """float32 weights (rows, cols) of `data` (rows, bytes per row)."""
    if kind not in KINDS:
        raise FormatError(f"unknown tensor format {kind!r}", cure=nearest(kind, KINDS))
    rows = data.shape[0]
    if data.shape[1] != row_bytes(kind, cols):
        raise FormatError(f"a {kind} row of {cols} weights has {row_bytes(kind, cols)} bytes, not {data.shape[1]}")
    data = np.ascontiguousarray(data)
    if kind == "F32":
        return data.view("<f4").reshape(rows, cols)
    if kind == "F16":
        return data.view("<f2").astype(np.float32).reshape(rows, cols)
    if kind == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(rows, cols)
    blocks = data.reshape(-1, KINDS[kind].bytes)
    return np.ascontiguousarray(_DECODERS[kind](blocks), dtype=np.float32).reshape(rows, cols)


def _half(blocks: Bytes, at: int) -> FloatArray:
    """The float16 at byte `at` of every block, as a float32 column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(n, k) bytes to (n, 2k) values: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 bits, one for each weight, stored as four bytes from `at`; returned in place (value 0 or 16)."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _q4_0(b: Bytes) -> FloatArray:
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(b: Bytes) -> FloatArray:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> FloatArray:
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)).astype(np.float32) - np.float32(16))


def _q5_1(b: Bytes) -> FloatArray:
    return _half(b, 0) * (_nibbles(b[:, 8:]) | _fifth_bits(b, 4)).astype(np.float32) + _half(b, 2)


def _q8_0(b: Bytes) -> FloatArray:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _k_scales(s: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes to eight 6-bit scales and eight 6-bit minima.

    The first four of each sit in the low 6 bits of bytes 0-3 and 4-7; the last four have their low nibbles in
    bytes 8-11 and their two top bits in the top bits of bytes 0-3 and 4-7.
    """
    low, mid, high = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scale, minimum


def _k_affine(b: Bytes, q: Bytes) -> FloatArray:
    """d * scale * q - dmin * minimum over eight sub-blocks of 32; `q` is (n, 8, 32)."""
    scale, minimum = _k_scales(b[:, 4:16])
    d = _half(b, 0) * scale.astype(np.float32)
    m = _half(b, 2) * minimum.astype(np.float32)
    return d[:, :, None] * q.astype(np.float32) - m[:, :, None]


def _k_nibbles(packed: Bytes) -> Bytes:
    """128 bytes to (n, 8, 32): each run of 32 bytes holds a sub-block in its low and the next in its high nibbles."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(b: Bytes) -> FloatArray:
    return _k_affine(b, _k_nibbles(b[:, 16:]))


def _q5_k(b: Bytes) -> FloatArray:
    bits = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & np.uint8(1)  # bit j: sub-block j
    return _k_affine(b, _k_nibbles(b[:, 48:]) | (bits << np.uint8(4)))


def _q6_k(b: Bytes) -> FloatArray:
    low = b[:, :128].reshape(-1, 2, 64)
    high = b[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    pairs = (high >> np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]) & 3
    q = (nibbles | (pairs << 4)).astype(np.float32) - np.float32(32)
    scale = b[:, 192:208].view(np.int8).astype(np.float32)
    d = _half(b, 208) * scale  # (n, 16), one for each 16 weights
    return d[:, :, None] * q.reshape(-1, 16, 16)


_DECODERS: dict[str, Callable[[Bytes], FloatArray]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
