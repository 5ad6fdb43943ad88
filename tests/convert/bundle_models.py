"""Tiny models of each family with a tokenizer that a bundle can hold."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nn"))

import foreign

from ladderlm.models import ModelFiles, open_model
from ladderlm.text.specs import CUTS, added, byte_level, whole
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

NAMES = [
    "llama", "llama biased", "llama 3 rope", "llama linear rope", "mistral window", "qwen2", "qwen2 windows",
    "qwen2 yarn", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "phi3 long", "phi4 mini", "smollm3", "olmo2",
    "stablelm", "gpt2", "opt",
]  # fmt: skip


def small_tokenizer() -> Tokenizer:
    """96 tokens: two control tokens, most of ASCII, a space and a new line, a few merges."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t")]
    letters = [c for c in map(chr, range(0x21, 0x7F)) if c not in "~^`{}@"]
    tokens = ["<|im_start|>", "<|im_end|>", "Ġ", "Ċ", *letters, *(a + b for a, b in merges)]
    assert len(tokens) == foreign.V
    vocab = {token: i for i, token in enumerate(tokens)}
    control = [added(0, "<|im_start|>"), added(1, "<|im_end|>")]
    spec = whole(byte_level(vocab, merges, CUTS["qwen2"]), control)
    made = Tokenizer(spec, lambda: json.dumps(spec))
    return made.with_special(SpecialTokens(bos=0, eos=1))


def small_files(name: str, path: Path) -> ModelFiles:
    """The model `name` of foreign.MODELS with that tokenizer and ChatML."""
    files = open_model(str(foreign.save(foreign.make(name), path)))
    return dataclasses.replace(files, tokenizer=small_tokenizer(), template=ChatTemplate(CHATML))
