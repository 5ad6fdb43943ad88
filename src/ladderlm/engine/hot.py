"""Adapters at run time: what a backend holds of one, and the keys and values of virtual tokens.

The virtual tokens of a tuned prompt or prefix come first, so what they leave in the cache is the same for every text:
it is computed once, and each request starts from a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ladderlm.engine.cache import KVCache
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.models.adapter import Adapter
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray

VIRTUAL = -1  # the id that virtual tokens have in a cache


@dataclass(eq=False)
class LoadedAdapter:
    """A fitted adapter as a backend holds it: `packed` is the backend's own, `start` a cache of its virtual tokens.

    `retired`: no new request will have it.
    """

    adapter: Adapter
    packed: Any
    start: KVCache
    retired: bool = False


def virtual_past(adapter: Adapter, arch: Architecture, weights: Weights) -> FloatArray:
    """Keys and values of a fitted prompt's or prefix's P virtual tokens, (layers, 2, P, key heads, head dim)."""
    assert adapter.virtual is not None
    if adapter.kind == "prefix":
        return adapter.virtual
    past = _Recorded()
    ReferenceDecoder(arch, weights).hidden_of(adapter.virtual, past=past)
    return np.stack(past.layers)


class _Recorded:
    """The past of a text that begins here, written down layer by layer."""

    def __init__(self) -> None:
        self.layers: list[FloatArray] = []

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        self.layers.append(np.stack([k_TGK, v_TGK]))
        return k_TGK, v_TGK
