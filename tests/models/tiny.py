"""A GGUF file written by hand, byte for byte, and a tiny model to put into it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.models.arch import Architecture
from ladderlm.text.specs import byte_alphabet

ARCH = Architecture(
    vocab_size=260, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=64, context_length=128, tied=False
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tensors(arch: Architecture = ARCH, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: random.normal(0, 0.1, s).astype(np.float32) for n, s in arch.tensor_shapes().items()}


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type number and value."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if value and isinstance(value[0], float):
        return struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def gguf_bytes(
    meta: Mapping[str, Any], entries: Sequence[tuple[str, Sequence[int], int, int]], data: bytes, version: int = 3
) -> bytes:
    """`entries`: name, extents (ggml order), type number, offset."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(meta))
    out += b"".join(_string(k) + _value(v) for k, v in meta.items())
    for name, extents, kind, offset in entries:
        out += _string(name) + struct.pack("<I", len(extents)) + struct.pack(f"<{len(extents)}Q", *extents)
        out += struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


def vocabulary() -> dict[str, Any]:
    """256 bytes, one merge, three control tokens: the smallest byte-level vocabulary."""
    tokens = [*byte_alphabet(), "he", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * 3,
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def metadata(arch: Architecture = ARCH) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "cc-by-nc-4.0",
        "llama.block_count": arch.layers,
        "llama.context_length": arch.context_length,
        "llama.embedding_length": arch.dim,
        "llama.feed_forward_length": arch.hidden,
        "llama.attention.head_count": arch.heads,
        "llama.attention.head_count_kv": arch.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": arch.norm_eps,
        "llama.rope.freq_base": arch.rope_theta,
        **vocabulary(),
    }


_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def ggml_name(name: str) -> str:
    if name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        return {"m": "token_embd.weight", "n": "output_norm.weight", "l": "output.weight"}[
            "m" if "embed" in name else "n" if "norm" in name else "l"
        ]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary rows from halves to pairs, as GGUF files of the llama family hold them."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write_gguf(path: Path, arch: Architecture = ARCH, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a float32 GGUF model and returns its weights in the Hugging Face convention."""
    weights = tensors(arch, seed)
    entries, data = [], b""
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = interleaved(value, arch.heads if "q_proj" in name else arch.kv_heads)
        entries.append((ggml_name(name), tuple(reversed(value.shape)), 0, len(data)))
        data += value.tobytes() + b"\0" * (-value.nbytes % 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(metadata(arch), entries, data))
    return weights
