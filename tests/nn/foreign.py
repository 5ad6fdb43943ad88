"""Tiny random models of every decoder family, made by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

V = 96
_SHAPE: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MOE: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
         "long_factor": [4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5], "original_max_position_embeddings": 20}  # fmt: skip


def _gpt(kind: str, **more: Any) -> Callable[[], Any]:
    wide = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    wide |= {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
    base: dict[str, dict[str, Any]] = {
        "GPT2": {"vocab_size": V, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
                 "eos_token_id": 2},
        "OPT": {**wide, "ffn_dim": 96, "word_embed_proj_dim": 64},
        "Falcon": wide,
    }  # fmt: skip
    return _llama(kind, base[kind], **more)


def _llama(kind: str, shape: dict[str, Any] | None = None, cls: str = "", **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        config = getattr(transformers, f"{kind}Config")(**{**(shape or _SHAPE), **more})
        name = cls or ("GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
        # transformers' plain attention adds ALiBi twice; its fused one adds it once.
        attention = "sdpa" if more.get("alibi") else "eager"
        return getattr(transformers, name)._from_config(config, attn_implementation=attention)

    return make


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama("Llama"),
    "llama biased": _llama("Llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama 3 rope": _llama("Llama", rope_parameters=_LLAMA3),
    "llama linear rope": _llama("Llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "mistral": _llama("Mistral", sliding_window=None),
    "mistral window": _llama("Mistral", sliding_window=8),
    "qwen2": _llama("Qwen2"),
    "qwen2 windows": _llama("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen2 yarn": _llama("Qwen2", rope_parameters=_YARN),
    "qwen3": _llama("Qwen3", head_dim=32),
    "mixtral": _llama("Mixtral", num_local_experts=4),
    "qwen2_moe": _llama("Qwen2Moe", **_MOE, shared_expert_intermediate_size=48),
    "qwen2_moe sparse": _llama("Qwen2Moe", **_MOE, shared_expert_intermediate_size=48, decoder_sparse_step=2),
    "qwen3_moe": _llama("Qwen3Moe", **_MOE, head_dim=16, norm_topk_prob=True, mlp_only_layers=[1]),
    "gemma": _llama("Gemma", head_dim=16),
    "gemma2": _llama("Gemma2", head_dim=32, sliding_window=8, query_pre_attn_scalar=20),
    "gemma3_text": _llama("Gemma3Text", cls="Gemma3ForCausalLM", head_dim=16, sliding_window=8,
                          layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                          rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                                           "full_attention": {"rope_type": "linear", "factor": 8.0,
                                                              "rope_theta": 1e6}}),
    "phi3": _llama("Phi3", sliding_window=9),
    "phi3 long": _llama("Phi3", rope_parameters=_LONG, original_max_position_embeddings=20),
    "phi4 mini": _llama("Phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                 "partial_rotary_factor": 0.75}, tie_word_embeddings=True),
    "smollm3": _llama("SmolLM3", no_rope_layer_interval=2),
    "olmo2": _llama("Olmo2"),
    "stablelm": _llama("StableLm", use_qkv_bias=True),
    "stablelm 2": _llama("StableLm", qk_layernorm=True, use_parallel_residual=True),
    "gpt2": _gpt("GPT2"),
    "opt": _gpt("OPT"),
    "falcon 7b": _gpt("Falcon"),
    "falcon 40b": _gpt("Falcon", new_decoder_architecture=True, num_kv_heads=2),
    "falcon 11b": _gpt("Falcon", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    "falcon rw": _gpt("Falcon", alibi=True, multi_query=False, parallel_attn=False, bias=True),
}  # fmt: skip


def make(name: str) -> Any:
    """A model in evaluation mode, every weight random."""
    torch.manual_seed(7)
    return randomised(MODELS[name]())


def randomised(model: Any) -> Any:
    """The model in evaluation mode, every weight random (norms and biases too, or errors in them would not show)."""
    with torch.no_grad():
        for key, parameter in model.eval().named_parameters():
            if not parameter.requires_grad:
                continue  # sinusoids
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "gate.weight" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            elif "embed" in key or "wte" in key or "wpe" in key:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[-1] ** -0.5)
    return model


def save(model: Any, path: Path) -> Path:
    """The model as a folder, with a tokenizer of words that suits its vocabulary."""
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(path / "tokenizer.json"))
