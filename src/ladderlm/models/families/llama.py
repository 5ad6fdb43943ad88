"""The families that are Llama with variations: read and written as data plus the lines that differ."""

from __future__ import annotations

import re
from typing import Any

from ladderlm.models.arch import Architecture
from ladderlm.models.families.config import Config, rotary_keys, spelled, window_keys
from ladderlm.models.families.stored import Stored, renamed

CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM", "stablelm": "StableLmForCausalLM",
}  # fmt: skip
_GEMMA = {"gemma", "gemma2", "gemma3_text"}
_TIED = _GEMMA | {"smollm3"}  # tied unless the config says otherwise


def read(c: Config) -> Architecture:
    """An Architecture from a config.json of one of these families."""
    heads, dim, layers = c.whole("num_attention_heads"), c.whole("hidden_size"), c.whole("num_hidden_layers")
    head_dim = c.whole("head_dim", 256 if c.family in _GEMMA else 128 if c.family == "qwen3" else dim // max(heads, 1))
    fields: dict[str, Any] = {
        "vocab_size": c.whole("vocab_size"),
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "kv_heads": c.whole("num_key_value_heads", heads),
        "head_dim": head_dim,
        "hidden": c.whole("intermediate_size"),
        "context_length": c.whole("max_position_embeddings", 2048),
        "norm_eps": c.number("rms_norm_eps", 1e-6),
        "tied": bool(c.get("tie_word_embeddings", c.family in _TIED)),
        "family": c.family,
        "activation": c.activation("hidden_activation" if c.get("hidden_activation") else "hidden_act", "silu"),
        **c.rotary(head_dim, 2000000.0 if c.family == "smollm3" else 10000.0),
    }
    return Architecture(**fields | _variation(c, layers, dim, head_dim))


def _variation(c: Config, layers: int, dim: int, head_dim: int) -> dict[str, Any]:
    """What a family changes."""
    every, none = (True,) * layers, (False,) * layers
    bias = bool(c.get("attention_bias", False))
    both = {"qkv_bias": bias, "out_bias": bias}
    match c.family:
        case "llama":
            return {**both, "mlp_bias": bool(c.get("mlp_bias", False))}
        case "mistral":
            return {"windows": c.windows(layers, every)}
        case "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe":
            first = c.whole("max_window_layers", 28)
            local = tuple(i >= first for i in range(layers)) if c.get("use_sliding_window", False) else none
            windows = c.windows(layers, local) if any(local) else ()
            attention = both if "3" in c.family else {"qkv_bias": bool(c.get("qkv_bias", True))}
            norm = {"qk_norm": "head"} if "3" in c.family else {}
            return {"windows": windows, **attention, **norm, **(_experts(c, layers) if "moe" in c.family else {})}
        case "mixtral":
            return {"windows": c.windows(layers, every), **_experts(c, layers)}
        case "gemma" | "gemma2" | "gemma3_text":
            return {**both, **_gemma(c, layers, dim)}
        case "phi3":
            return {"windows": c.windows(layers, every)}
        case "smollm3":
            step = c.whole("no_rope_layer_interval", 4)
            rotated = c.get("no_rope_layers", [int((i + 1) % step != 0) for i in range(layers)])
            local = every if c.get("use_sliding_window", False) else none
            return {**both, "mlp_bias": bool(c.get("mlp_bias", False)), "windows": c.windows(layers, local),
                    "unrotated": tuple(i for i, turned in enumerate(rotated) if not turned)}  # fmt: skip
        case "olmo2":
            return {**both, "placement": "inner", "qk_norm": "all", "norm_eps": c.number("rms_norm_eps", 1e-5)}
        case _:  # stablelm
            parallel = bool(c.get("use_parallel_residual", False))
            rotary = {} if c.get("partial_rotary_factor") or c.mapping("rope_parameters") else {
                "rotary_dim": head_dim // 4
            }  # fmt: skip
            return {"norm": "layer", "norm_bias": True, "norm_eps": c.number("layer_norm_eps", 1e-5), **rotary,
                    "qkv_bias": bool(c.get("use_qkv_bias", False)), "placement": "parallel" if parallel else "pre",
                    "qk_norm": "heads" if c.get("qk_layernorm", False) else ""}  # fmt: skip


def _experts(c: Config, layers: int) -> dict[str, Any]:
    if c.family == "mixtral":
        return {"experts": c.whole("num_local_experts", 8), "experts_used": c.whole("num_experts_per_tok", 2),
                "expert_hidden": c.whole("intermediate_size")}  # fmt: skip
    step, only = max(c.whole("decoder_sparse_step", 1), 1), c.get("mlp_only_layers", [])
    count = c.whole("num_experts", c.whole("num_local_experts", 60))
    return {
        "experts": count,
        "experts_used": c.whole("num_experts_per_tok", 4),
        "expert_hidden": c.whole("moe_intermediate_size"),
        "expert_weights_normed": bool(c.get("norm_topk_prob", False)),
        "shared_hidden": c.whole("shared_expert_intermediate_size") if c.family == "qwen2_moe" else 0,
        "dense_layers": tuple(i for i in range(layers) if i in only or (i + 1) % step),
    }


def _gemma(c: Config, layers: int, dim: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "norm_offset": True,
        "embed_scale": dim**0.5,
        "activation": c.activation("hidden_activation", "gelu_pytorch_tanh"),
    }
    if c.family == "gemma":  # its first files say "gelu" and mean the approximation
        return found | {"activation": "gelu_tanh"}
    pattern = 2 if c.family == "gemma2" else c.whole("sliding_window_pattern", 6)
    found |= {
        "placement": "sandwich",
        "attention_scale": c.number("query_pre_attn_scalar", 256) ** -0.5,
        "windows": c.windows(layers, tuple((i + 1) % pattern != 0 for i in range(layers))),
        "attention_cap": c.number("attn_logit_softcapping", 50.0 if c.family == "gemma2" else 0.0),
        "logit_cap": c.number("final_logit_softcapping", 30.0 if c.family == "gemma2" else 0.0),
    }
    if c.family == "gemma3_text":
        local = c.rotary(1)["local_theta"] or 10000.0
        found |= {"qk_norm": "head", "local_theta": local}
        if not c.mapping("rope_parameters"):
            found["rope_theta"] = c.number("rope_theta", 1000000.0)
    return found


def write(arch: Architecture) -> dict[str, Any]:
    """The config.json of an Architecture of one of these families, but for its special tokens."""
    config: dict[str, Any] = {
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.dim,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.hidden,
        "max_position_embeddings": arch.context_length,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied,
        "hidden_act": spelled(arch.activation),
        **rotary_keys(arch),
    }
    return config | _own_keys(arch)


def _own_keys(arch: Architecture) -> dict[str, Any]:
    windows, bias = window_keys(arch), {"attention_bias": arch.qkv_bias}
    sliding = {"use_sliding_window": bool(arch.windows)}
    match arch.family:
        case "llama":
            return {**bias, "mlp_bias": arch.mlp_bias}
        case "mistral":
            return {"sliding_window": windows["sliding_window"]}
        case "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe":
            first = next((i for i in range(arch.layers) if arch.window(i)), arch.layers)
            own = bias if "3" in arch.family else {"qkv_bias": arch.qkv_bias} if "moe" in arch.family else {}
            return {**windows, **sliding, "max_window_layers": first, **own, **_expert_keys(arch)}
        case "mixtral":
            return {"sliding_window": windows["sliding_window"], "num_local_experts": arch.experts,
                    "num_experts_per_tok": arch.experts_used, "intermediate_size": arch.expert_hidden}  # fmt: skip
        case "gemma" | "gemma2" | "gemma3_text":
            keys = {**bias, "hidden_activation": spelled(arch.activation)}
            if arch.family == "gemma":
                return keys
            return keys | windows | {
                "query_pre_attn_scalar": round(arch.scale**-2),
                "attn_logit_softcapping": arch.attention_cap or None,
                "final_logit_softcapping": arch.logit_cap or None,
            }  # fmt: skip
        case "phi3":
            original = arch.rope_scaling.get("original_max_position_embeddings", arch.context_length)
            return {"sliding_window": windows["sliding_window"], "original_max_position_embeddings": original}
        case "smollm3":
            rotated = [int(i not in arch.unrotated) for i in range(arch.layers)]
            return {**bias, **windows, **sliding, "mlp_bias": arch.mlp_bias, "no_rope_layers": rotated}
        case "olmo2":
            return bias
        case _:
            return {"layer_norm_eps": arch.norm_eps, "use_qkv_bias": arch.qkv_bias,
                    "use_parallel_residual": arch.placement == "parallel", "qk_layernorm": bool(arch.qk_norm),
                    "partial_rotary_factor": (arch.rotary_dim or arch.head_dim) / arch.head_dim}  # fmt: skip


def _expert_keys(arch: Architecture) -> dict[str, Any]:
    if not arch.experts:
        return {}
    keys = {"num_experts": arch.experts, "num_experts_per_tok": arch.experts_used, "decoder_sparse_step": 1,
            "moe_intermediate_size": arch.expert_hidden, "norm_topk_prob": arch.expert_weights_normed,
            "mlp_only_layers": list(arch.dense_layers)}  # fmt: skip
    return keys | ({"shared_expert_intermediate_size": arch.shared_hidden} if arch.shared_hidden else {})


_NORMS = {
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
_NAMES: dict[str, dict[str, str]] = {
    "gemma2": _NORMS, "gemma3_text": _NORMS, "olmo2": _NORMS,
    "mixtral": {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "stablelm": {"q_norm": "q_layernorm", "k_norm": "k_layernorm"},
}  # fmt: skip


def stored(arch: Architecture) -> list[Stored]:
    """The tensors of a file of one of these families."""
    shapes = arch.tensor_shapes()
    if arch.family == "phi3":
        return _fused(list(shapes))
    other = _NAMES.get(arch.family, {})
    return renamed(shapes, lambda name: ".".join(other.get(part, part) for part in name.split(".")))


def _fused(names: list[str]) -> list[Stored]:
    """Phi-3 has queries, keys and values in one matrix, and gate and up in one."""
    found = []
    for name in names:
        if re.search(r"\.(k_proj|v_proj|up_proj)\.", name):
            continue
        if ".q_proj." in name:
            parts = tuple(name.replace("q_proj", f"{x}_proj") for x in "qkv")
            found.append(Stored(name.replace("q_proj", "qkv_proj"), parts))
        elif ".gate_proj." in name:
            up = name.replace("gate_proj", "up_proj")
            found.append(Stored(name.replace("gate_proj", "gate_up_proj"), (name, up)))
        else:
            found.append(Stored(name, (name,)))
    return found
