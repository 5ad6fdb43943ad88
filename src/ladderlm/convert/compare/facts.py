"""The facts of two architectures, value by value."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ladderlm.convert.compare.verdict import Check, failed, passed
from ladderlm.models.arch import Architecture
from ladderlm.models.rope import frequencies

# What two files may say differently of one network: its name, where the output head lies, padding, and what is
# compared as what comes out of it (rotary frequencies, the scale of queries, windows).
_SPELLING = {"family", "tied", "pad_id", "rope_scaling", "rotary_dim", "local_theta", "attention_scale", "windows"}
_NAMES = {"context_length": "the context", "norm_eps": "the norm's epsilon (norm_eps)",
          "rope_theta": "the base of the rotary positions (rope_theta)"}  # fmt: skip


def architectures(a: Architecture, b: Architecture) -> Check:
    """Every value that changes what the network computes, or how far it may read."""
    found = [
        f"{_NAMES.get(f.name, f.name)} is {_said(getattr(a, f.name))} in A, {_said(getattr(b, f.name))} in B"
        for f in dataclasses.fields(Architecture)
        if f.name not in _SPELLING and not _equal(getattr(a, f.name), getattr(b, f.name))
    ]
    if a.layers == b.layers and a.kind == b.kind == "decoder":
        found += _derived(a, b)
    if found:
        return failed("architecture", "; ".join(found), "correct the config (or the GGUF's metadata) of the wrong one")
    rotary = f", rotary base {a.rope_theta:g}" if a.positions == "rotary" else ""
    words = f"{a.layers} layers of width {a.dim}, {a.heads} heads ({a.kv_heads} for keys), context"
    return passed("architecture", f"{words} {a.context_length:,}{rotary}, norm epsilon {a.norm_eps:g}: all equal")


def _derived(a: Architecture, b: Architecture) -> list[str]:
    found = []
    if not _equal(a.scale, b.scale):
        found.append(f"queries are multiplied by {a.scale:.6g} in A, {b.scale:.6g} in B")
    windows = [[x.window(i) if x.window(i) < x.context_length else 0 for i in range(x.layers)] for x in (a, b)]
    if windows[0] != windows[1]:
        layer = next(i for i in range(a.layers) if windows[0][i] != windows[1][i])
        told = [f"{w[layer]} positions" if w[layer] else "everything" for w in windows]
        found.append(f"layer {layer} sees {told[0]} in A, {told[1]} in B")
    if a.positions == b.positions == "rotary":
        for layer in range(a.layers):
            (turns, scale), (other, times) = (frequencies(x, layer, x.context_length) for x in (a, b))
            if turns.shape != other.shape or not np.allclose(turns, other, rtol=1e-5) or not _equal(scale, times):
                return [*found, f"rotary positions of layer {layer} turn at other speeds (base, scaling or their part)"]
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)  # GGUF keeps float32
    return bool(a == b)


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
