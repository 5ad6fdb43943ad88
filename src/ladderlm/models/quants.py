"""The block formats of GGUF: how bytes become integers and scales, and those float32.

Every format stores a row as consecutive blocks (ggml's `block_*` structs, little endian). `d` is a float16 scale,
`m` a float16 minimum; K formats hold 256 weights in sub-blocks of 16 or 32 with 4- to 8-bit scales of their own; IQ4
formats look their 4 bits up in a table of unequal steps. All arithmetic is float32 in the order of the reference, so
results agree with it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    "Q2_K": Kind(10, 256, 84),
    "Q3_K": Kind(11, 256, 110),
    "Q4_K": Kind(12, 256, 144),
    "Q5_K": Kind(13, 256, 176),
    "Q6_K": Kind(14, 256, 210),
    "IQ4_NL": Kind(20, 32, 18),
    "IQ4_XS": Kind(23, 256, 136),
}
NUMBERS = {kind.number: name for name, kind in KINDS.items()}


class Codes(NamedTuple):
    """What blocks hold: weight = scale * (q - zero) + low. `q` is (blocks, weights) of uint8 or int8; `scale` and
    `low` (or None) are (blocks, groups), a group being the next weights / groups of a block."""

    q: npt.NDArray[Any]
    zero: int
    scale: FloatArray
    low: FloatArray | None


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
    out = np.empty((rows, cols), np.float32)
    step = max(1, 2**20 // cols)  # some megabytes at a time: the integers in between are small then
    for row in range(0, rows, step):
        found = codes(kind, data[row : row + step].reshape(-1, KINDS[kind].bytes))
        groups = found.scale.shape[1]
        values = found.q.reshape(len(found.q), groups, -1).astype(np.float32)
        if found.zero:
            values -= np.float32(found.zero)
        values *= found.scale[:, :, None]
        if found.low is not None:
            values += found.low[:, :, None]
        out[row : row + step] = values.reshape(-1, cols)
    return out


def bfloat16(values: FloatArray) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 values, rounded to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")


def codes(kind: str, blocks: Bytes) -> Codes:
    """The integers and scales of `blocks` (n, bytes per block) of a quantised kind."""
    return _DECODERS[kind](blocks)


def _half(blocks: Bytes, at: int) -> FloatArray:
    """The float16 at byte `at` of every block, as a float32 column."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(n, k) bytes to (n, 2k) values: all low nibbles, then all high ones."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 bits, one for each weight, stored as four bytes from `at`; returned in place (value 0 or 16)."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _k_scales(s: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes to eight 6-bit scales and eight 6-bit minima.

    The first four of each sit in the low 6 bits of bytes 0-3 and 4-7; the last four have their low nibbles in
    bytes 8-11 and their two top bits in the top bits of bytes 0-3 and 4-7.
    """
    low, mid, high = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimum = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scale, minimum


def _k_nibbles(packed: Bytes) -> Bytes:
    """128 bytes to (n, 256): each run of 32 bytes holds a sub-block in its low and the next in its high nibbles."""
    runs = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, 256)


def _k_affine(b: Bytes, q: Bytes) -> Codes:
    """Q4_K and Q5_K: eight groups of 32, d * scale * q - dmin * minimum."""
    scale, minimum = _k_scales(b[:, 4:16])
    return Codes(q, 0, _half(b, 0) * scale.astype(np.float32), -(_half(b, 2) * minimum.astype(np.float32)))


def _pairs(packed: Bytes) -> Bytes:
    """64 bytes to (n, 256) values of 2 bits: of each 32 bytes all lowest pairs of bits, then all next ones..."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)


def _bits(packed: Bytes) -> Bytes:
    """32 bytes to (n, 256): all lowest bits, then all next ones..."""
    return ((packed[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & np.uint8(1)).reshape(-1, 256)


def _q2_k(b: Bytes) -> Codes:
    """Sixteen groups of 16, d * (low nibble) * q - dmin * (high nibble)."""
    both = b[:, :16]
    low = _half(b, 82) * (both >> 4).astype(np.float32)
    return Codes(_pairs(b[:, 16:80]), 0, _half(b, 80) * (both & 15).astype(np.float32), -low)


def _q3_k(b: Bytes) -> Codes:
    """Sixteen groups of 16; a scale's low 4 bits are a nibble of bytes 0-7, its high 2 a pair of bits of bytes 8-11."""
    s = b[:, 96:108]
    top = (s[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[None, :, None]) & 3
    scale = (_nibbles(s[:, :8]) | (top.reshape(-1, 16) << 4)).astype(np.float32) - np.float32(32)
    return Codes(_pairs(b[:, 32:96]) | (_bits(b[:, :32]) << 2), 4, _half(b, 108) * scale, None)


def _q5_k(b: Bytes) -> Codes:
    return _k_affine(b, _k_nibbles(b[:, 48:]) | (_bits(b[:, 16:48]) << np.uint8(4)))


def _q6_k(b: Bytes) -> Codes:
    """Sixteen groups of 16 with int8 scales; four low bits as in pairs of 64 bytes, two high ones as in Q2_K."""
    low = b[:, :128].reshape(-1, 2, 64)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 256)
    scale = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return Codes(nibbles | (_pairs(b[:, 128:192]) << 4), 32, scale, None)


_STEPS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)  # of IQ4


def _iq4_xs(b: Bytes) -> Codes:
    """Eight groups of 32; a scale's low 4 bits are a nibble of bytes 4-7, its high 2 a pair of bits of bytes 2-3."""
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    top = (b[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    scale = (low | (top.reshape(-1, 8) << 4)).astype(np.float32) - np.float32(32)
    q = _STEPS[_nibbles(b[:, 8:].reshape(-1, 16))].reshape(-1, 256)
    return Codes(q, 0, _half(b, 0) * scale, None)


_DECODERS: dict[str, Callable[[Bytes], Codes]] = {
    "Q4_0": lambda b: Codes(_nibbles(b[:, 2:]), 8, _half(b, 0), None),
    "Q4_1": lambda b: Codes(_nibbles(b[:, 4:]), 0, _half(b, 0), _half(b, 2)),
    "Q5_0": lambda b: Codes(_nibbles(b[:, 6:]) | _fifth_bits(b, 2), 16, _half(b, 0), None),
    "Q5_1": lambda b: Codes(_nibbles(b[:, 8:]) | _fifth_bits(b, 4), 0, _half(b, 0), _half(b, 2)),
    "Q8_0": lambda b: Codes(b[:, 2:].view(np.int8), 0, _half(b, 0), None),
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": lambda b: _k_affine(b, _k_nibbles(b[:, 16:])),
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": lambda b: Codes(_STEPS[_nibbles(b[:, 2:])], 0, _half(b, 0), None),
    "IQ4_XS": _iq4_xs,
}
