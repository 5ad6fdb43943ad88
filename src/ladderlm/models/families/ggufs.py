"""GGUF: what its metadata say of a model, and what it calls the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ladderlm.errors import FormatError
from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import SERVED


def from_gguf(meta: Mapping[str, Any], *, tied: bool = True) -> Architecture:
    """From the metadata of a GGUF file with general.architecture = llama; `tied`: it has no output.weight."""
    kind = meta.get("general.architecture")
    if kind != "llama":
        raise FormatError(f"the architecture {kind!r} is not supported, the nearest family is llama", cure=SERVED)
    if meta.get("llama.rope.scaling.type", "none") != "none" or meta.get("llama.expert_count", 0):
        raise FormatError("this llama variant (rope scaling or experts) is not supported", cure=SERVED)
    try:
        heads, dim = meta["llama.attention.head_count"], meta["llama.embedding_length"]
        return Architecture(
            vocab_size=meta.get("llama.vocab_size") or len(meta["tokenizer.ggml.tokens"]),
            dim=dim,
            layers=meta["llama.block_count"],
            heads=heads,
            kv_heads=meta.get("llama.attention.head_count_kv", heads),
            head_dim=meta.get("llama.attention.key_length") or dim // heads,
            hidden=meta["llama.feed_forward_length"],
            context_length=meta["llama.context_length"],
            norm_eps=shortest(meta.get("llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=shortest(meta.get("llama.rope.freq_base", 10000.0)),
            tied=tied,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise FormatError(f"the GGUF header lacks or spoils {error}") from None


def shortest(value: float) -> float:
    """The shortest decimal of a float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(value)))
