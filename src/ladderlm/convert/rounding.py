"""Weights to integers with a scale a group: to the nearest, or so that a layer's outputs change least (GPTQ).

A group is `group` neighbouring weights of a row; weight = code * scale, codes from -2^(bits-1) to 2^(bits-1) - 1 and
scales in float16, so that what is chosen here is what a file holds. Frantar et al. 2022, "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ladderlm.types import FloatArray

Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float16]
DAMPING = 0.01  # of the mean diagonal, added to the second moments: keeps their inverse sound
COLUMNS = 128  # columns whose errors are spread at once
_SHRINK = np.linspace(0.65, 1.0, 15, dtype=np.float32)  # of the full range: clipping the largest may help the rest
_SMALLEST = np.float32(2.0**-24)  # the least float16 above zero


def to_nearest(weight_OI: FloatArray, bits: int, group: int) -> tuple[Codes, Scales]:
    """Round to nearest: each group's largest magnitude spans the range. codes_OI, scales_OG."""
    groups_OGK = weight_OI.reshape(len(weight_OI), -1, group)
    top = np.float32(2 ** (bits - 1) - 0.5)
    scales_OG = _halves(np.abs(groups_OGK).max(-1) / top)
    return _round(groups_OGK, scales_OG, bits).reshape(weight_OI.shape), scales_OG


def best_scales(groups_NK: FloatArray, worth_K: FloatArray, bits: int) -> npt.NDArray[np.float16]:
    """scales_N of groups_NK with the least squared error, weighted by worth_K, among both signs and some clippings.

    A negative scale lets the group's extreme weight, of whichever sign, take the one code that has no opposite.
    """
    extreme_N = np.take_along_axis(groups_NK, np.abs(groups_NK).argmax(-1, keepdims=True), -1)[:, 0]
    bottom = np.float32(2 ** (bits - 1))
    best_N = np.full(len(groups_NK), np.inf, np.float32)
    scales_N = np.zeros(len(groups_NK), np.float16)
    for shrink in _SHRINK if bits < 8 else _SHRINK[-1:]:
        for full in (-bottom, bottom - 1):
            tried_N = _halves(extreme_N * shrink / full)
            error_NK = _round(groups_NK, tried_N, bits) * tried_N.astype(np.float32)[:, None] - groups_NK
            error_N = (error_NK * error_NK) @ worth_K
            better_N = error_N < best_N
            best_N[better_N], scales_N[better_N] = error_N[better_N], tried_N[better_N]
    return scales_N


def gptq(weight_OI: FloatArray, moments_II: npt.NDArray[np.float64], bits: int, group: int) -> tuple[Codes, Scales]:
    """Columns are rounded one after another, and each one's error is made up for by those still to come.

    `moments_II` is X^T X of the layer's inputs X. codes_OI, scales_OG.
    """
    order_I, factor_II = _order(moments_II, group)
    worth_I = np.diag(moments_II)[order_I].astype(np.float32)
    left_IO = np.ascontiguousarray(weight_OI.T[order_I])  # columns as rows: each is contiguous
    codes_IO = np.empty(left_IO.shape, np.int8)
    scales_GO = np.empty((len(left_IO) // group, len(weight_OI)), np.float16)
    for start in range(0, len(left_IO), COLUMNS):
        end = min(start + COLUMNS, len(left_IO))
        block_IO = left_IO[start:end]
        errors_IO = np.empty_like(block_IO)
        for i in range(start, end):
            if i % group == 0:
                # The columns of a group beyond this block cannot be: groups divide COLUMNS, or hold whole blocks.
                members_OK = np.ascontiguousarray(left_IO[i : i + group].T)
                scales_GO[i // group] = best_scales(members_OK, worth_I[i : i + group] + np.float32(1e-12), bits)
            scale_O = scales_GO[i // group]
            column_O = left_IO[i]
            codes_IO[i] = _round(column_O[:, None], scale_O, bits)[:, 0]
            error_O = (column_O - codes_IO[i] * scale_O.astype(np.float32)) / factor_II[i, i]
            left_IO[i + 1 : end] -= factor_II[i, i + 1 : end, None] * error_O
            errors_IO[i - start] = error_O
        left_IO[end:] -= factor_II[start:end, end:].T @ errors_IO
    back_I = np.argsort(order_I)
    back_G = back_I[::group] // group
    return np.ascontiguousarray(codes_IO[back_I].T), np.ascontiguousarray(scales_GO[back_G].T)


def _order(moments_II: npt.NDArray[np.float64], group: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Columns, the busiest groups first, and the upper Cholesky factor of the inverse moments in that order."""
    size = len(moments_II)
    worth_I = np.diag(moments_II)
    order_G = np.argsort(-worth_I.reshape(-1, group).sum(1), kind="stable")
    order_I = (order_G[:, None] * group + np.arange(group)).reshape(-1)
    damped_II = moments_II[np.ix_(order_I, order_I)].copy()
    damped_II[np.diag_indices(size)] += DAMPING * worth_I.mean() + 1e-10
    # The upper factor of an inverse is the inverse of the lower factor of the matrix read from its far corner.
    far_II = np.linalg.cholesky(damped_II[::-1, ::-1])
    return order_I, np.linalg.inv(far_II)[::-1, ::-1].astype(np.float32)


def _round(groups: FloatArray, scales: Scales, bits: int) -> Codes:
    """Codes of `groups` (..., k) under `scales` (...)."""
    bottom = 2 ** (bits - 1)
    return np.clip(np.rint(groups / scales.astype(np.float32)[..., None]), -bottom, bottom - 1).astype(np.int8)


def _halves(scales: FloatArray) -> npt.NDArray[np.float16]:
    """As float16, never zero or infinite."""
    small = np.abs(scales) < _SMALLEST
    return np.where(small, _SMALLEST, np.clip(scales, -65504, 65504)).astype(np.float16)
