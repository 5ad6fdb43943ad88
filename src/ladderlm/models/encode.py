"""float32 weights into GGUF's block formats: the other way of quants.py.

F16, BF16, Q8_0, Q5_0 and Q4_0 are rounded as ggml's reference does, to the bit. Q4_K follows the scheme of its author
(k-quants, llama.cpp pull request 1684): for each 32 weights a scale and a minimum that make the weighted squared
error small, found by trying several steps and solving a least-squares problem after each; then both are rounded to 6
bits, relative to the largest of eight, and the weights to 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ladderlm.errors import FormatError, UsageError, nearest
from ladderlm.models.quants import KINDS, Bytes, bfloat16, row_bytes
from ladderlm.types import FloatArray

_AT_A_TIME = 2**17  # weights: what is in between stays in the second cache
_STEPS = np.linspace(-0.6, 0.6, 11, dtype=np.float32)  # tried beside 15, the widest code, for the size of a step


def encode(kind: str, values: FloatArray) -> Bytes:
    """(rows, bytes per row) of `values` (rows, cols).

    FormatError when the rows are no whole number of blocks or a value does not fit (none of a block format may be
    infinite or NaN); UsageError for a kind that is only read.
    """
    if kind not in ENCODABLE:
        raise UsageError(f"cannot write {kind!r}", cure=nearest(kind, ENCODABLE))
    rows, cols = values.shape
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty((rows, row_bytes(kind, cols)), np.uint8)
    step = max(1, _AT_A_TIME // cols)
    for row in range(0, rows, step):
        some = values[row : row + step]
        if kind not in ("F32", "F16", "BF16") and not np.isfinite(some).all():
            raise FormatError(f"an infinite or undefined weight cannot be written as {kind}")
        blocks = _ENCODERS[kind](some.reshape(-1, KINDS[kind].weights))
        out[row : row + step] = blocks.reshape(len(some), -1)
    return out


def _raw(values: np.ndarray) -> Bytes:
    """Little-endian bytes of each row."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _half(values: FloatArray) -> Bytes:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if np.isinf(halves).any() and not np.isinf(values).any():
        raise FormatError("a weight or scale is too large for 16 bits", cure="use F32 or BF16")
    return _raw(halves)


def _inverse(d: FloatArray) -> FloatArray:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _nibbles(q: Bytes) -> Bytes:
    """(n, 2k) values to (n, k) bytes: the first half low, the second high."""
    half = q.shape[1] // 2
    return q[:, :half] | (q[:, half:] << np.uint8(4))


def _q8_0(x: FloatArray) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    q = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return np.concatenate([_half(d), q.astype(np.int8).view(np.uint8)], axis=1)


def _signed(x: FloatArray, half: int) -> tuple[Bytes, Bytes]:
    """Scales and codes 0 .. 2 * half - 1; the weight of largest size becomes code 0 (-half), whatever its sign."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-half)
    q = np.minimum(x * _inverse(d) + np.float32(half + 0.5), np.float32(2 * half - 1)).astype(np.uint8)
    return _half(d), q


def _q4_0(x: FloatArray) -> Bytes:
    d, q = _signed(x, 8)
    return np.concatenate([d, _nibbles(q)], axis=1)


def _q5_0(x: FloatArray) -> Bytes:
    d, q = _signed(x, 16)
    fifth = np.packbits(q >> np.uint8(4), axis=1, bitorder="little")
    return np.concatenate([d, fifth, _nibbles(q & np.uint8(15))], axis=1)


def _q4_k(x: FloatArray) -> Bytes:
    n = len(x)
    parts = x.reshape(n, 8, 32)
    scale, minimum = (found.reshape(n, 8) for found in _affine(x.reshape(-1, 32)))
    halves = [_half(found.max(axis=1, keepdims=True) / np.float32(63)) for found in (scale, minimum)]
    d, m = (h.view("<f2").astype(np.float32) for h in halves)
    scale_6, minimum_6 = (
        np.minimum(np.rint(found * _inverse(unit)), 63).astype(np.uint8) for found, unit in ((scale, d), (minimum, m))
    )
    step, low = d * scale_6.astype(np.float32), m * minimum_6.astype(np.float32)
    q = np.clip(np.rint((parts + low[:, :, None]) * _inverse(step)[:, :, None]), 0, 15).astype(np.uint8)
    pairs = q.reshape(n, 4, 2, 32)
    codes = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, 128)
    return np.concatenate([*halves, _k_scales(scale_6, minimum_6), codes], axis=1)


def _k_scales(scale: Bytes, minimum: Bytes) -> Bytes:
    """Eight 6-bit scales and minima to 12 bytes, as quants.py describes them."""
    low = (scale[:, :4] & 63) | (scale[:, 4:] >> 4 << 6)
    mid = (minimum[:, :4] & 63) | (minimum[:, 4:] >> 4 << 6)
    return np.concatenate([low, mid, (scale[:, 4:] & 15) | ((minimum[:, 4:] & 15) << 4)], axis=1)


def _affine(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scales s >= 0 and minima m >= 0 (n, 1) with x near s * q - m for integers q of 0..15; x is (n, 32).

    Errors count by w = |x| + rms(x): large weights matter more. With the codes q of a tried step held fixed, the best
    s and m solve two linear equations; the step of least remaining error wins.
    """
    w = np.abs(x) + np.sqrt(np.mean(np.square(x), axis=1, keepdims=True))
    wx = w * x
    sum_w, sum_x, sum_xx = w.sum(1), wx.sum(1), np.einsum("ij,ij->i", wx, x)
    low = np.minimum(x.min(axis=1), 0)
    span = np.maximum(x.max(axis=1), 0) - low
    best = np.full(len(x), np.inf, np.float32)
    scale, minimum = span / np.float32(15), -low
    for nudge in _STEPS:
        inverse = (np.float32(15) + nudge) * _inverse(span)
        q = x * inverse[:, None]
        q -= (low * inverse)[:, None]
        np.clip(np.rint(q, out=q), 0, 15, out=q)
        wq = w * q
        sum_q, sum_qq, sum_xq = wq.sum(1), np.einsum("ij,ij->i", wq, q), np.einsum("ij,ij->i", wq, x)
        det = sum_w * sum_qq - sum_q * sum_q
        s = (sum_w * sum_xq - sum_x * sum_q) * _inverse(det)
        m = (sum_qq * sum_x - sum_q * sum_xq) * _inverse(det)
        bare = m > 0  # a minimum above zero cannot be stored
        s, m = np.where(bare, sum_xq * _inverse(sum_qq), s), np.where(bare, np.float32(0), m)
        error = sum_xx + s * (s * sum_qq - 2 * sum_xq) + m * (2 * s * sum_q - 2 * sum_x + m * sum_w)
        better = (error < best) & (det > 0) & (s > 0)
        best = np.where(better, error, best)
        scale, minimum = np.where(better, s, scale), np.where(better, -m, minimum)
    return scale, minimum


_ENCODERS: dict[str, Callable[[FloatArray], Bytes]] = {
    "F32": _raw,
    "F16": _half,
    "BF16": lambda x: _raw(bfloat16(x)),
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q4_0": _q4_0,
    "Q4_K": _q4_k,
}
ENCODABLE = tuple(_ENCODERS)
