"""Adapters at run time: what PEFT and merged weights give, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.plain import PlainNetwork
from ladderlm.errors import FormatError
from ladderlm.models.adapter import Adapter, LoraConfig, MergedWeights, load_adapter
from ladderlm.models.arch import Architecture
from ladderlm.types import FloatArray

IDS = [5, 9, 200, 31, 7, 77, 12, 3] * 5
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "learned": {"qkv_bias": True, "norm": "layer", "norm_bias": True, "positions": "learned", "gated": False},
    "experts": {"experts": 3, "experts_used": 2, "expert_hidden": 32, "dense_layers": (0,)},
}


def lora(arch: Architecture, seed: int = 0, rank: int = 4) -> Adapter:
    """Random, on every matrix of every layer."""
    random = np.random.default_rng(seed)
    pairs = {}
    for name, shape in arch.tensor_shapes().items():
        if name.startswith("model.layers.") and name.endswith("_proj.weight"):
            a, b = random.normal(0, 0.1, (rank, shape[1])), random.normal(0, 0.1, (shape[0], rank))
            pairs[name] = (a.astype(np.float32), b.astype(np.float32))
    return Adapter(Path(f"lora-{seed}"), "base", "lora", {}, 0, LoraConfig(rank, 2.0 * rank), 2.0, pairs)


def virtual(arch: Architecture, kind: str, seed: int = 0, tokens: int = 5) -> Adapter:
    width = arch.dim if kind == "prompt" else arch.layers * 2 * arch.kv_heads * arch.head_dim
    values = np.random.default_rng(seed).normal(0, 1, (tokens, width)).astype(np.float32)
    assert kind in ("prompt", "prefix")
    return Adapter(Path(f"{kind}-{seed}"), "base", kind, {}, 0, virtual=values)  # type: ignore[arg-type]


def logits(network: Backend, ids: Sequence[int], adapter: Adapter | None = None, cut: int | None = None) -> FloatArray:
    """Of a whole text, read in two pieces when `cut`."""
    loaded = network.adapt(adapter) if adapter else None
    cache = loaded.start.fork(len(loaded.start)) if loaded else network.cache()
    pieces = [ids] if cut is None else [ids[:cut], ids[cut:]]
    return np.concatenate([network.run([Piece(cache, p, 0, loaded)]).copy() for p in pieces])


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_lora_is_as_merged(changes: dict[str, Any]) -> None:
    arch = tiny(**changes)
    weights, adapter = KindWeights(arch), lora(arch)
    merged = PlainNetwork(arch, MergedWeights(weights, adapter, arch))
    hot = PlainNetwork(arch, weights)
    found = logits(hot, IDS, adapter, cut=17)
    assert np.allclose(found, logits(merged, IDS), atol=1e-4)
    assert not np.allclose(found, logits(hot, IDS), atol=1e-2)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("tokens", [5, 32, 45])
def test_compiled_and_plain_agree_on_virtual_tokens(kind: str, tokens: int) -> None:
    arch = tiny()
    weights, adapter = KindWeights(arch), virtual(arch, kind, tokens=tokens)
    compiled = on_cpu(arch, weights, threads=2)
    try:
        assert np.allclose(
            logits(compiled, IDS, adapter, cut=17), logits(PlainNetwork(arch, weights), IDS, adapter), atol=1e-3
        )
    finally:
        compiled.close()


def test_what_does_not_fit_is_named() -> None:
    arch = tiny()
    network = PlainNetwork(arch, KindWeights(arch))
    wide = tiny(dim=96)
    for adapter in (lora(wide), virtual(wide, "prompt"), virtual(tiny(layers=1), "prefix")):
        with pytest.raises(FormatError, match="does not fit"):
            network.adapt(adapter)
    with pytest.raises(FormatError, match="context"):
        network.adapt(virtual(arch, "prompt", tokens=160))
    elsewhere = dataclasses.replace(lora(arch), pairs={"lm_head.weight": (np.zeros((4, 64)), np.zeros((257, 4)))})
    with pytest.raises(FormatError, match="lm_head"):
        network.adapt(elsewhere)


# --- PEFT -------------------------------------------------------------------------------------------------------------


def hf_model(family: str, folder: Path) -> Any:
    """A tiny random model of transformers, saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shared = {"vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 160}
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=257, n_embd=64, n_layer=2, n_head=4, n_positions=160)
    elif family == "llama":
        config = transformers.LlamaConfig(**shared, **more)
    elif family == "phi3":
        config = transformers.Phi3Config(**shared, **more, pad_token_id=0)
    else:
        config = transformers.Gemma3TextConfig(**shared, **more, head_dim=16, sliding_window=64)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def ours(folder: Path) -> PlainNetwork:
    from ladderlm.models import families
    from ladderlm.models.bounded import read_json
    from ladderlm.models.folder import read_shards
    from ladderlm.models.safetensors import SafetensorsWeights

    tensors = read_shards(folder)
    arch = families.from_hf(read_json(folder / "config.json"), tensors.keys())
    return PlainNetwork(arch, SafetensorsWeights(tensors, families.stored(arch), arch.tensor_shapes(), str(folder)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3"])
@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_what_peft_writes_gives_what_peft_gives(family: str, kind: str, tmp_path: Path) -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = hf_model(family, tmp_path / "base")
    if kind == "lora":
        config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    elif kind == "prompt":
        config = peft.PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM")
    else:
        config = peft.PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.normal_(0, 0.3)
        expected = tuned(torch.tensor([IDS])).logits[0, -len(IDS) :].numpy()
    tuned.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter")
    assert adapter.kind == kind
    found = logits(ours(tmp_path / "base"), IDS, adapter, cut=11)
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(logits(ours(tmp_path / "base"), IDS) - expected).max() > 1e-2
