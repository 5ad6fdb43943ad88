"""Tiny random models of every packed kind, and a byte-level tokenizer for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ladderlm.engine.reference import Past, ReferenceDecoder
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


FLOATS = ("F32", "F16", "BF16")


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


class Rounded(ReferenceDecoder):
    """The reference with the roundings of the kernels: activations before a quantised matrix to 8 bits in groups of
    32, keys and values to float16 where there are such matrices."""

    def score(self, x_TD: FloatArray) -> FloatArray:
        return super().score(self._coded("model.embed_tokens" if self.arch.tied else "lm_head", x_TD))

    def hidden_of(self, x_TD: FloatArray, start: int = 0, past: Past | None = None) -> FloatArray:
        coded = any(b is not None and b.kind not in FLOATS for b in map(self.weights.blocks, self.weights.names()))
        return super().hidden_of(x_TD, start, past or (HalfPast() if coded else None))

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        return super()._linear(name, self._coded(name, x))

    def _coded(self, name: str, x: FloatArray) -> FloatArray:
        found = self.weights.blocks(name + ".weight")
        if found is None or found.kind in FLOATS:
            return x
        groups = x.reshape(*x.shape[:-1], -1, 32)
        scale = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
        return np.asarray(np.rint(groups / np.where(scale == 0, 1, scale)) * scale, np.float32).reshape(x.shape)


class HalfPast:
    """Keys and values in float16."""

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        k, v = (x.astype(np.float16).astype(np.float32) for x in (k_TGK, v_TGK))
        return k, v


def random_blocks(random: np.random.Generator, kind: str, rows: int, cols: int) -> Blocks:
    if kind in FLOATS:
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
