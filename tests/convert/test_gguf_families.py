"""Every family: transformers -> folder -> GGUF -> llama.cpp and our own reader, with the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from llama_cpp import LlamaCpp, log_softmax, write_tokenizer

pytest.importorskip("torch")
pytest.importorskip("transformers")
import foreign
import torch

from ladderlm.convert import gguf
from ladderlm.errors import FormatError
from ladderlm.models import open_model
from ladderlm.models.gguf import read_gguf
from ladderlm.nn.decoder import load_decoder

_MOE: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2}
_GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
OWN = {
    "llama longrope": foreign._llama(
        "Llama", rope_parameters={**foreign._LONG, "attention_factor": 1.1}, max_position_embeddings=80
    ),
    "llama odd rope": foreign._llama("Llama", rope_parameters={**foreign._LLAMA3, "high_freq_factor": 3.0}),
    "qwen2_moe": foreign._llama("Qwen2Moe", **_MOE, shared_expert_intermediate_size=48, norm_topk_prob=False),
    "qwen3_moe": foreign._llama("Qwen3Moe", **_MOE, head_dim=32, norm_topk_prob=True),
    "gemma2": foreign._llama("Gemma2", head_dim=32, sliding_window=8, query_pre_attn_scalar=32),
    "gemma3_text": foreign._llama(
        "Gemma3Text", cls="Gemma3ForCausalLM", head_dim=32, sliding_window=8, query_pre_attn_scalar=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": _GLOBAL},
    ),
    "smollm3": foreign._llama("SmolLM3", num_hidden_layers=5),
    "qwen2 biased": foreign._llama("Qwen2", tie_word_embeddings=True),
}  # fmt: skip
# Family -> how far llama.cpp's log-probabilities may be: its GELU is a table of 16-bit numbers, and Falcon's not exact.
SAME = dict.fromkeys(
    ("llama", "llama biased", "llama 3 rope", "llama linear rope", "llama longrope", "llama odd rope", "mistral",
     "mistral window", "mixtral", "qwen2", "qwen2 biased", "qwen2 windows", "qwen2 yarn", "qwen3", "qwen2_moe",
     "qwen3_moe", "phi3", "phi3 long", "phi4 mini", "smollm3", "olmo2", "stablelm", "stablelm 2"), 1e-4,
) | {"gemma": 2e-2, "gemma2": 1e-2, "gemma3_text": 1e-2, "gpt2": 2e-2, "falcon 7b": 5e-2, "falcon 40b": 5e-2,
     "falcon 11b": 5e-2}  # fmt: skip
REFUSED = ("qwen2_moe sparse", "falcon rw", "opt")


def folder(name: str, path: Path) -> Path:
    with mock.patch.dict(foreign.MODELS, OWN if name not in REFUSED else {}):
        foreign.make(name).save_pretrained(path)
    write_tokenizer(path, foreign.V)
    return path


FIRST = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2")  # the others when there is time


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in SAME])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Name, folder, GGUF file."""
    place = tmp_path_factory.mktemp("family")
    source = folder(request.param, place / "folder")
    return request.param, source, gguf.write(open_model(str(source)), place / "model.gguf", "F32")


def logits(path: Path, ids: list[int]) -> np.ndarray:
    decoder = load_decoder(open_model(str(path)))
    with torch.no_grad():
        hidden = decoder(torch.tensor(ids), [len(ids)])
        return decoder.logits(hidden).float().numpy()


def prompts(limit: int) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, foreign.V, n).tolist() for n in sorted({3, min(7, limit), min(40, limit)})]


def test_our_reader_gets_the_same_logits(exported: tuple[str, Path, Path]) -> None:
    _, source, file = exported
    assert open_model(str(file)).arch.dim == 64
    for ids in prompts(open_model(str(file)).arch.context_length):
        np.testing.assert_allclose(logits(file, ids), logits(source, ids), atol=2e-5)


def test_llama_cpp_gets_the_same_logits(exported: tuple[str, Path, Path]) -> None:
    name, source, file = exported
    context = open_model(str(file)).arch.context_length
    other = LlamaCpp(file, context)
    # llama.cpp chooses LongRoPE's factors by the room it has (always more than here), not by the text's length
    tried = prompts(context - 1)[-1:] if "long" in name else prompts(context - 1)
    for ids in tried:
        ours, theirs = log_softmax(logits(source, ids)[-1]), other.logprobs(ids, foreign.V)
        assert len(theirs) == foreign.V
        worst = max(abs(ours[i] - value) for i, value in theirs.items())
        assert worst < SAME[name], f"{len(ids)} tokens: {worst}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_cannot_say_is_refused(name: str, tmp_path: Path) -> None:
    files = open_model(str(folder(name, tmp_path / "folder")))
    with pytest.raises(FormatError, match="GGUF"):
        gguf.write(files, tmp_path / "x.gguf", "F32")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K"])
def test_every_kind_is_read_back(name: str, kind: str, tmp_path: Path) -> None:
    files = open_model(str(folder(name, tmp_path / "folder")))
    file = gguf.write(files, tmp_path / "x.gguf", kind)
    assert {n: t.kind for n, t in read_gguf(file).tensors.items()} == gguf.kinds(files.arch, kind)
    back = open_model(str(file))
    for weight in files.weights.names():
        wanted, found = files.weights.float32(weight), back.weights.float32(weight)
        bound = {"F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.01}.get(kind, 0.15)
        assert np.linalg.norm(found - wanted) <= bound * np.linalg.norm(wanted), weight
