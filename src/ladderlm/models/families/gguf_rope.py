"""Rotary scaling in GGUF files: a few keys, and tensors with a divisor for each rotated pair.

Llama 3's scaling is only there as divisors; its parameters are found again where they are the published ones, else the
divisors are kept as they are (Hugging Face can say that too: "longrope" with the same list for short and long texts).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ladderlm.errors import FormatError
from ladderlm.models.arch import Architecture
from ladderlm.models.rope import frequencies
from ladderlm.types import FloatArray

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQS, LONG, SHORT)
_ORIGINAL = "original_max_position_embeddings"


def rope_to_meta(arch: Architecture) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Keys (without the architecture's prefix) and tensors for the rotary positions of `arch`."""
    spec = arch.rope_scaling
    keys: dict[str, Any] = {
        "rope.dimension_count": arch.rotary_dim or arch.head_dim,
        "rope.freq_base": arch.rope_theta,
    }
    if arch.local_theta:
        keys["rope.freq_base_swa"] = arch.local_theta
    kind = spec.get("rope_type", "default")
    if original := spec.get(_ORIGINAL):
        keys["rope.scaling.original_context_length"] = int(original)
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": float(spec["factor"])}, {}
    whole = next((i for i in range(arch.layers) if not (arch.local_theta and arch.window(i))), 0)
    if kind == "yarn":
        usual = 0.1 * math.log(spec["factor"]) + 1 if spec["factor"] > 1 else 1.0
        scale = frequencies(arch, whole)[1] / usual
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(spec["factor"])}
        return keys | ({"rope.scaling.attn_factor": float(scale)} if abs(scale - 1) > 1e-6 else {}), {}
    if kind == "llama3":
        plain = dataclasses.replace(arch, rope_scaling={})
        divisors = frequencies(plain, whole)[0] / frequencies(arch, whole)[0]
        return keys, {FREQS: divisors.astype(np.float32)}
    if kind == "longrope":
        original = int(spec.get(_ORIGINAL) or arch.context_length)
        keys |= {
            "rope.scaling.type": "longrope",
            "rope.scaling.attn_factor": frequencies(arch, whole, original + 1)[1],
            "rope.scaling.original_context_length": original,
        }
        lists = {LONG: spec["long_factor"], SHORT: spec["short_factor"]}
        return keys, {name: np.asarray(values, np.float32) for name, values in lists.items()}
    return keys, {}


def rope_from_meta(get: Callable[..., Any], arch: Architecture, factors: Mapping[str, FloatArray]) -> Mapping[str, Any]:
    """The rope_scaling of an Architecture; `get(key, otherwise)` reads a key, `factors` are the file's tensors."""
    kind = get("rope.scaling.type", "none")
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    original = get("rope.scaling.original_context_length")
    scale = get("rope.scaling.attn_factor", 1.0)
    if not all(isinstance(v, (int, float)) for v in (factor, original or 0, scale)) or not isinstance(kind, str):
        raise FormatError("the rope scaling of the GGUF header is not sound")
    count = (arch.rotary_dim or arch.head_dim) // 2
    if any(f.shape != (count,) or not np.isfinite(f).all() or (f <= 0).any() for f in factors.values()):
        raise FormatError("the rotary factors of the GGUF file are not sound")
    if LONG in factors and SHORT in factors:
        return {"rope_type": "longrope", "long_factor": _decimals(factors[LONG]),
                "short_factor": _decimals(factors[SHORT]), "attention_factor": _shortest(scale),
                _ORIGINAL: original or arch.context_length}  # fmt: skip
    if FREQS in factors:
        return _llama3(arch, factors[FREQS], original)
    if kind == "yarn":
        usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        own = {"attention_factor": scale * usual} if scale != 1.0 else {}
        return {"rope_type": "yarn", "factor": _shortest(factor), _ORIGINAL: original or arch.context_length, **own}
    if kind not in ("none", "linear", "longrope"):
        raise FormatError(f"the rope scaling {kind[:40]!r} is not supported")
    return {"rope_type": "linear", "factor": _shortest(factor)} if factor != 1.0 else {}


def _llama3(arch: Architecture, divisors: FloatArray, original: int | None) -> Mapping[str, Any]:
    largest = _shortest(divisors.max())
    plain = frequencies(arch, 0)[0]
    for context in (original, 8192):
        spec = {"rope_type": "llama3", "factor": largest, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                _ORIGINAL: context}  # fmt: skip
        if context and np.allclose(
            plain / frequencies(dataclasses.replace(arch, rope_scaling=spec), 0)[0], divisors, rtol=1e-4
        ):
            return spec
    same = _decimals(divisors)
    return {"rope_type": "longrope", "long_factor": same, "short_factor": same, "attention_factor": 1.0,
            _ORIGINAL: arch.context_length}  # fmt: skip


def _decimals(values: FloatArray) -> list[float]:
    return [_shortest(v) for v in values]


def _shortest(value: Any) -> float:
    """The shortest decimal of a float32."""
    return float(str(np.float32(value)))
