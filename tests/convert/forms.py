"""A tiny model in many forms, and ways to spoil one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.models.adapter import LoraConfig, save_adapter
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import save_model
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

SHAPE = Architecture(
    vocab_size=264, dim=64, layers=3, heads=4, kv_heads=2, head_dim=16, hidden=96, context_length=512, tied=False
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(merges: tuple[str, ...] = ("h e", "i n", "a n", "t he"), **special: Any) -> Tokenizer:
    """Bytes, a few merges and three control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added = [
        {"id": len(vocab) + i, "content": c, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, c in enumerate(control)
    ]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": level, "decoder": level,
            "post_processor": None, "model": {"type": "BPE", "vocab": vocab, "merges": list(merges)}}  # fmt: skip
    return Tokenizer.from_json(json.dumps(spec), SpecialTokens(**({"bos": 260, "eos": 262} | special)))


def tensors(arch: Architecture = SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a size at which rows of logits are far from even."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(*((1, 0.1) if len(shape) == 1 else (0, 0.15)), shape).astype(np.float32)
        for name, shape in arch.tensor_shapes().items()
    }


def write(path: Path, arch: Architecture = SHAPE, dtype: str = "float32", seed: int = 0) -> Path:
    """A folder of random weights."""
    save_model(
        path, arch, tensors(arch, seed), tokenizer(), ChatTemplate(TEMPLATE, "<|endoftext|>", "<|im_end|>"),
        generation={}, lineage={"licence": "apache-2.0"}, dtype=dtype,
    )  # fmt: skip
    return path


def adapter(path: Path, base: Path, arch: Architecture = SHAPE) -> Path:
    random = np.random.default_rng(7)
    found = {}
    for layer in range(arch.layers):
        for target, rows in (("q_proj", arch.heads * arch.head_dim), ("v_proj", arch.kv_heads * arch.head_dim)):
            stem = f"model.layers.{layer}.self_attn.{target}"
            found[f"{stem}.lora_A.weight"] = random.normal(0, 0.1, (4, arch.dim)).astype(np.float32)
            found[f"{stem}.lora_B.weight"] = random.normal(0, 0.1, (rows, 4)).astype(np.float32)
    save_adapter(path, str(base), LoraConfig(4, 8.0, ("q_proj", "v_proj")), found)
    return path


def edit_tensors(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """Rewrites the folder's weights; `change(name, values)` as float32, stored again in their type."""
    file = folder / "model.safetensors"
    held = read_safetensors(file)
    kinds = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    dtype = kinds[next(iter(held.values())).dtype]
    write_safetensors(file, {n: np.array(change(n, t.array().copy())) for n, t in held.items()}, dtype)


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None takes one away."""
    data: Mapping[str, Any] = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
