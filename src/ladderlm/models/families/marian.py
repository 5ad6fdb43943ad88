"""The Transformer of Vaswani et al. (2017), as Marian's translation models have it, and BART (Lewis et al. 2019).

The paper interleaves sines and cosines over the coordinates; here the sines come first, which is the same network with
its coordinates in another order.
"""

from __future__ import annotations

from typing import Any

from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import Config, spelled
from ladderlm.models.families.stored import Stored

CLASSES = {"marian": "MarianMTModel", "bart": "BartForConditionalGeneration"}
_BART_OFFSET = 2  # its position table starts with two rows that nothing uses
_FIXED: dict[str, Any] = {
    "kind": "encoder-decoder", "norm": "layer", "norm_bias": True, "norm_eps": 1e-5, "placement": "post",
    "gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True,
}  # fmt: skip


def read(c: Config) -> Architecture:
    """An Architecture from a config.json of one of these families."""
    c.refuse(normalize_before=True, share_encoder_decoder_embeddings=False, tie_word_embeddings=False)
    c.refuse(**{"add_final_layer_norm": True, "normalize_embedding": c.family == "marian"})
    heads, dim = c.whole("encoder_attention_heads", 16), c.whole("d_model", 1024)
    for name in ("attention_heads", "ffn_dim"):  # the two stacks differ in nothing but their depth
        if c.get(f"decoder_{name}") != c.get(f"encoder_{name}"):
            c.refuse(**{f"decoder_{name}": c.get(f"decoder_{name}")})
    pad = c.whole("pad_token_id", 1)
    own: dict[str, Any] = {"positions": "sinusoidal"} if c.family == "marian" else {
        "positions": "learned", "position_offset": _BART_OFFSET, "embed_norm": True
    }  # fmt: skip
    return Architecture(
        family=c.family, vocab_size=c.whole("vocab_size"), dim=dim, layers=c.whole("encoder_layers", 12),
        decoder_layers=c.whole("decoder_layers", 12), heads=heads, kv_heads=heads, head_dim=dim // max(heads, 1),
        hidden=c.whole("encoder_ffn_dim", 4096), context_length=c.whole("max_position_embeddings", 1024),
        activation=c.activation("activation_function", "gelu"), pad_id=pad,
        embed_scale=dim**0.5 if c.get("scale_embedding", False) else 1.0,
        start_id=c.whole("decoder_start_token_id", pad), head_bias="final_logits_bias" in c.names, **own, **_FIXED,
    )  # fmt: skip


def write(arch: Architecture) -> dict[str, Any]:
    """The config.json of an Architecture of one of these families, but for its special tokens."""
    config: dict[str, Any] = {"share_encoder_decoder_embeddings": True} if arch.family == "marian" else {}
    for stack, layers in (("encoder", arch.layers), ("decoder", arch.decoder_layers)):
        config |= {f"{stack}_layers": layers, f"{stack}_attention_heads": arch.heads, f"{stack}_ffn_dim": arch.hidden}
    return config | {
        "vocab_size": arch.vocab_size, "d_model": arch.dim, "max_position_embeddings": arch.context_length,
        "activation_function": spelled(arch.activation), "scale_embedding": arch.embed_scale != 1.0,
        "is_encoder_decoder": True, "tie_word_embeddings": True, "decoder_start_token_id": arch.start_id,
        "num_hidden_layers": arch.layers, "forced_eos_token_id": None,
    }  # fmt: skip


_PARTS = {
    "attention_out_norm": "self_attn_layer_norm", "cross_attn": "encoder_attn",
    "cross_attn_out_norm": "encoder_attn_layer_norm", "mlp_out_norm": "final_layer_norm", "o_proj": "out_proj",
    "up_proj": "fc1", "down_proj": "fc2", "embed_norm": "layernorm_embedding",
}  # fmt: skip


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of one of these families."""
    found = []
    for name in arch.tensor_shapes():
        if name == "model.embed_tokens.weight":
            copies = "model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight", "lm_head.weight"
            found.append(Stored("model.shared.weight", (name,), also=copies))
        elif name == "lm_head.bias":
            found.append(Stored("final_logits_bias", (name,), stacked=True))
        else:
            found.append(Stored(".".join(_PARTS.get(part, part) for part in name.split(".") if part != "mlp"), (name,)))
    return found
