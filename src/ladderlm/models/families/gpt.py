"""GPT-2, OPT and Falcon: decoders with LayerNorm and a feed-forward layer without gate."""

from __future__ import annotations

import re
from typing import Any

from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import Config, rotary_keys, spelled
from ladderlm.models.families.stored import Stored, grouped

CLASSES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "falcon": "FalconForCausalLM"}
_LAYER_NORM: dict[str, Any] = {"norm": "layer", "norm_bias": True, "gated": False}
_ALL_BIASES: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_OPT_OFFSET = 2  # its position table starts with two rows that nothing uses


def read(c: Config) -> Architecture:
    """An Architecture from a config.json of one of these families."""
    readers = {"gpt2": _gpt2, "opt": _opt, "falcon": _falcon}
    return readers[c.family](c)


def _gpt2(c: Config) -> Architecture:
    c.refuse(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False, add_cross_attention=True)
    heads, dim = c.whole("n_head"), c.whole("n_embd")
    return Architecture(
        vocab_size=c.whole("vocab_size"), dim=dim, layers=c.whole("n_layer"), heads=heads, kv_heads=heads,
        head_dim=dim // max(heads, 1), hidden=c.whole("n_inner", 4 * dim), context_length=c.whole("n_positions", 1024),
        norm_eps=c.number("layer_norm_epsilon", 1e-5), tied=bool(c.get("tie_word_embeddings", True)), family="gpt2",
        positions="learned", activation=c.activation("activation_function", "gelu_new"), **_LAYER_NORM, **_ALL_BIASES,
    )  # fmt: skip


def _opt(c: Config) -> Architecture:
    c.refuse(do_layer_norm_before=False, layer_norm_elementwise_affine=False, _remove_final_layer_norm=True)
    heads, dim = c.whole("num_attention_heads"), c.whole("hidden_size")
    if c.whole("word_embed_proj_dim", dim) != dim:
        c.refuse(word_embed_proj_dim=c.get("word_embed_proj_dim"))
    bias = bool(c.get("enable_bias", True))
    return Architecture(
        vocab_size=c.whole("vocab_size"), dim=dim, layers=c.whole("num_hidden_layers"), heads=heads, kv_heads=heads,
        head_dim=dim // max(heads, 1), hidden=c.whole("ffn_dim"),
        context_length=c.whole("max_position_embeddings", 2048), norm_eps=1e-5,
        tied=bool(c.get("tie_word_embeddings", True)), family="opt", positions="learned", position_offset=_OPT_OFFSET,
        activation=c.activation("activation_function", "relu"), **_LAYER_NORM, qkv_bias=bias,
        out_bias=bias, mlp_bias=bias,
    )  # fmt: skip


def _falcon(c: Config) -> Architecture:
    heads, dim = c.whole("num_attention_heads"), c.whole("hidden_size")
    new, parallel = bool(c.get("new_decoder_architecture", False)), bool(c.get("parallel_attn", True))
    kv_heads = c.whole("num_kv_heads", heads) if new else 1 if c.get("multi_query", True) else heads
    bias, head_dim = bool(c.get("bias", False)), dim // max(heads, 1)
    return Architecture(
        vocab_size=c.whole("vocab_size"), dim=dim, layers=c.whole("num_hidden_layers"), heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, hidden=c.whole("ffn_hidden_size", 4 * dim),
        context_length=c.whole("max_position_embeddings", 2048), norm_eps=c.number("layer_norm_epsilon", 1e-5),
        tied=bool(c.get("tie_word_embeddings", True)), family="falcon",
        positions="alibi" if c.get("alibi", False) else "rotary", activation=c.activation("activation", "gelu"),
        placement="parallel" if parallel or new else "pre",
        two_norms=new and c.whole("num_ln_in_parallel_attn", 2) == 2, qkv_bias=bias, out_bias=bias, mlp_bias=bias,
        **_LAYER_NORM, **c.rotary(head_dim),
    )  # fmt: skip


def write(arch: Architecture) -> dict[str, Any]:
    """The config.json of an Architecture of one of these families, but for its special tokens."""
    shared = {"vocab_size": arch.vocab_size, "tie_word_embeddings": arch.tied}
    if arch.family == "gpt2":
        return shared | {
            "n_embd": arch.dim, "n_layer": arch.layers, "n_head": arch.heads, "n_inner": arch.hidden,
            "n_positions": arch.context_length, "n_ctx": arch.context_length, "layer_norm_epsilon": arch.norm_eps,
            "activation_function": "gelu_new" if arch.activation == "gelu_tanh" else spelled(arch.activation),
        }  # fmt: skip
    shared |= {"hidden_size": arch.dim, "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads,
               "max_position_embeddings": arch.context_length}  # fmt: skip
    if arch.family == "opt":
        return shared | {
            "ffn_dim": arch.hidden, "word_embed_proj_dim": arch.dim, "do_layer_norm_before": True,
            "activation_function": spelled(arch.activation), "enable_bias": arch.qkv_bias,
        }  # fmt: skip
    parallel = arch.placement == "parallel"
    # The layout of the newer Falcons holds the older ones' too, except where attention is not parallel.
    return shared | {
        "num_kv_heads": arch.kv_heads, "ffn_hidden_size": arch.hidden, "layer_norm_epsilon": arch.norm_eps,
        "activation": spelled(arch.activation), "bias": arch.qkv_bias, "alibi": arch.positions == "alibi",
        "new_decoder_architecture": parallel, "multi_query": parallel or arch.kv_heads == 1,
        "parallel_attn": parallel, "num_ln_in_parallel_attn": (2 if arch.two_norms else 1) if parallel else None,
        **rotary_keys(arch),
    }  # fmt: skip


_NAMES = {
    "gpt2": {
        "model.embed_tokens": "transformer.wte", "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f", "model.layers": "transformer.h", "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2", "self_attn.q_proj": "attn.c_attn", "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
    },
    "opt": {
        "model.embed": "model.decoder.embed", "model.norm": "model.decoder.final_layer_norm",
        "model.layers": "model.decoder.layers", "input_layernorm": "self_attn_layer_norm",
        "post_attention_layernorm": "final_layer_norm", "o_proj": "out_proj", "mlp.up_proj": "fc1",
        "mlp.down_proj": "fc2",
    },
    "falcon": {
        "model.embed_tokens": "transformer.word_embeddings", "model.norm": "transformer.ln_f",
        "model.layers": "transformer.h", "self_attn.q_proj": "self_attention.query_key_value",
        "self_attn.o_proj": "self_attention.dense", "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
}  # fmt: skip


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of one of these families."""
    names = _NAMES[arch.family]
    if arch.family == "falcon" and arch.two_norms:
        names = names | {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
    order = grouped(arch.heads, arch.kv_heads, arch.head_dim) if arch.family == "falcon" else None
    found = []
    for name in arch.tensor_shapes():
        if arch.family != "opt" and re.search(r"\.[kv]_proj\.", name):
            continue
        other = name
        for ours, theirs in names.items():
            other = other.replace(ours, theirs, 1)
        if arch.family != "opt" and ".q_proj." in name:
            parts = tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv")
            found.append(Stored(other, parts, order, turned=_turned(arch, name)))
        else:
            found.append(Stored(other, (name,), turned=_turned(arch, name)))
    return found


def _turned(arch: Architecture, name: str) -> bool:
    """GPT-2 keeps the matrices of its layers (inputs, outputs)."""
    return arch.family == "gpt2" and name.endswith("_proj.weight")
