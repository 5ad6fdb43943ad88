"""Rotary frequencies (Su et al. 2021), the published ways to stretch them over longer contexts, and ALiBi's slopes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ladderlm.errors import FormatError
from ladderlm.models.arch import Architecture

TYPES = ("default", "linear", "llama3", "yarn", "longrope")
Frequencies = npt.NDArray[np.float64]


def frequencies(arch: Architecture, layer: int, length: int = 0) -> tuple[Frequencies, float]:
    """(angle per position of each rotated pair, what sine and cosine are multiplied by) of a layer.

    `length` of the text so far matters to "longrope" only. FormatError for an unsound scaling.
    """
    size = arch.rotary_dim or arch.head_dim
    local = bool(arch.local_theta) and arch.window(layer) > 0
    theta = arch.local_theta if local else arch.rope_theta
    spec = {} if local else arch.rope_scaling
    kind = spec.get("rope_type", "default")
    try:
        plain = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
        if kind == "default":
            return plain, 1.0
        if kind == "linear":  # Chen et al. 2023
            return plain / spec["factor"], 1.0
        if kind == "llama3":
            return _llama3(plain, spec), 1.0
        if kind == "yarn":
            return _yarn(plain, theta, size, spec)
        if kind == "longrope":
            return _longrope(plain, spec, length, arch)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise FormatError(f"the rope scaling {dict(spec)} is not sound ({error})", where="architecture") from None
    raise FormatError(f"the rope scaling {kind!r} is not supported", cure="supported: " + ", ".join(TYPES))


def table(arch: Architecture, layer: int, positions: int, length: int = 0) -> npt.NDArray[np.float32]:
    """Cosines and sines (positions, 2, rotary_dim / 2) of a layer, its scale included."""
    angle, scale = frequencies(arch, layer, length or positions)
    angles = np.outer(np.arange(positions, dtype=np.float64), angle)
    return (scale * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def alibi_slopes(heads: int) -> npt.NDArray[np.float32]:
    """How much each head is held back by distance: a geometric row (Press et al. 2021)."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
    return np.asarray(slopes, np.float32)


def _number(spec: Any, name: str, otherwise: float) -> float:
    value = spec.get(f"{name}_max_position_embeddings") or otherwise
    return float(value)


def _llama3(plain: Frequencies, spec: Any) -> Frequencies:
    """Llama 3.1: long waves are divided by the factor, short ones kept, those between interpolated."""
    low, high, factor = spec["low_freq_factor"], spec["high_freq_factor"], spec["factor"]
    waves = _number(spec, "original", 8192) * plain / (2 * math.pi)  # turns within the original context
    share = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1 - share) * plain / factor + share * plain


def _yarn(plain: Frequencies, theta: float, size: int, spec: Any) -> tuple[Frequencies, float]:
    """YaRN (Peng et al. 2023): a ramp over the coordinates from kept to divided frequencies, and a temperature."""
    factor, original = spec["factor"], _number(spec, "original", 0)

    def coordinate(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = coordinate(spec.get("beta_fast") or 32), coordinate(spec.get("beta_slow") or 1)
    if spec.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
    scale = spec.get("attention_factor")
    if scale is None:
        over, under = (_mscale(factor, spec.get(k) or 0) for k in ("mscale", "mscale_all_dim"))
        scale = over / under if spec.get("mscale") and spec.get("mscale_all_dim") else _mscale(factor, 1)
    return plain / factor * ramp + plain * (1 - ramp), float(scale)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _longrope(plain: Frequencies, spec: Any, length: int, arch: Architecture) -> tuple[Frequencies, float]:
    """LongRoPE (Ding et al. 2024): a searched factor for each pair, one list for short and one for long texts."""
    original = _number(spec, "original", arch.context_length)
    factors = np.asarray(spec["long_factor"] if length > original else spec["short_factor"], np.float64)
    if factors.shape != plain.shape:
        raise ValueError(f"{factors.size} factors for {plain.size} pairs")
    scale, factor = spec.get("attention_factor"), spec.get("factor") or arch.context_length / original
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / factors, float(scale)
