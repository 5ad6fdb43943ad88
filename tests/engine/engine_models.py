"""Tiny random models of every packed kind, and a byte-level tokenizer for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ladderlm.models.arch import Architecture
from ladderlm.models.quants import KINDS
from ladderlm.models.weights import Blocks, matrix_blocks
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import FloatArray

EOS = 256  # the id after the 256 bytes
# Where a block's float16 fields stand, and a size that keeps weights near 0.1.
HALVES = {
    "Q4_0": {0: 0.02}, "Q4_1": {0: 0.02, 2: -0.15}, "Q5_0": {0: 0.01}, "Q5_1": {0: 0.01, 2: -0.15}, "Q8_0": {0: 0.002},
    "Q2_K": {80: 0.01, 82: 0.02}, "Q3_K": {108: 0.002}, "Q4_K": {0: 0.0006, 2: 0.005}, "Q5_K": {0: 0.0003, 2: 0.005},
    "Q6_K": {208: 0.0001}, "IQ4_NL": {0: 0.002}, "IQ4_XS": {0: 0.0001},
}  # fmt: skip


class KindWeights:
    """Random weights whose matrices are held as `kind`."""

    def __init__(self, arch: Architecture, kind: str = "F32", seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._matrices: dict[str, Blocks] = {}
        self._vectors: dict[str, FloatArray] = {}
        for name, shape in arch.tensor_shapes().items():
            if len(shape) == 1:
                self._vectors[name] = random.normal(1, 0.1, shape).astype(np.float32)
            else:
                self._matrices[name] = random_blocks(random, kind, *shape)

    def names(self) -> list[str]:
        return [*self._matrices, *self._vectors]

    def shape(self, name: str) -> tuple[int, ...]:
        found = self._matrices.get(name)
        return (found.rows, found.cols) if found else self._vectors[name].shape

    def float32(self, name: str) -> FloatArray:
        return self._matrices[name].float32() if name in self._matrices else self._vectors[name]

    def blocks(self, name: str) -> Blocks | None:
        return self._matrices.get(name)


def random_blocks(random: np.random.Generator, kind: str, rows: int, cols: int) -> Blocks:
    if kind in ("F32", "F16", "BF16"):
        values = random.normal(0, 0.1, (rows, cols)).astype(np.float32)
        if kind == "BF16":
            raw: Any = (values.view(np.uint32) >> 16).astype(np.uint16)
        else:
            raw = values.astype(np.float16) if kind == "F16" else values
        found = matrix_blocks(kind, raw)
        assert found is not None
        return found
    size = KINDS[kind]
    data = random.integers(0, 256, (rows * cols // size.weights, size.bytes), dtype=np.uint8)
    for at, value in HALVES[kind].items():
        halves = (value * random.uniform(0.5, 1.5, len(data))).astype(np.float16)
        data[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return Blocks(kind, rows, cols, data.reshape(rows, -1))


def tiny(**changes: Any) -> Architecture:
    shape: Mapping[str, Any] = {
        "vocab_size": 257, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 96,
        "context_length": 160, "tied": False,
    }  # fmt: skip
    return Architecture(**{**shape, **changes})


def byte_tokenizer() -> Tokenizer:
    """256 bytes and an end token."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{
            "id": EOS, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "merges": [],
            "vocab": {c: i for i, c in enumerate(alphabet)} | {"</s>": EOS},
        },
    }  # fmt: skip
    return Tokenizer.from_json(json.dumps(spec))
