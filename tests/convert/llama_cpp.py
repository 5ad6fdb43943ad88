"""llama.cpp as a reader of our files, and small vocabularies it takes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ladderlm.text.specs import byte_alphabet


class LlamaCpp:
    """A file loaded by llama.cpp, in float32 where it lets one choose."""

    def __init__(self, path: Path, context: int = 64) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is in the test extra")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
        params.warmup = False
        params.fit_params = False
        params.cache_type_k = params.cache_type_v = 0  # F32
        params.flash_attn_type = 0  # its sums are of 16 bits
        self._server = xllamacpp.Server(params)

    def logprobs(self, ids: Sequence[int], count: int) -> dict[int, float]:
        """The `count` likeliest next tokens after `ids`."""
        body = {"prompt": list(ids), "n_predict": 1, "temperature": 0, "cache_prompt": False, "n_probs": count}
        top = self._server.handle_completions(body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in top}

    def text(self, ids: Sequence[int], count: int) -> str:
        """`count` tokens after `ids`, the likeliest each time."""
        body = {"prompt": list(ids), "n_predict": count, "temperature": 0, "cache_prompt": False}
        return str(self._server.handle_completions(body)["choices"][0]["text"])


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level vocabulary of `size` tokens: three control tokens, letters, a merge."""
    letters = [c for c in byte_alphabet() if c.isalnum()][: size - 4]
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters, "he"])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    added = [
        {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for token, i in vocab.items() if i < 3
    ]  # fmt: skip
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": [["h", "e"]]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    x = logits_V.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())
