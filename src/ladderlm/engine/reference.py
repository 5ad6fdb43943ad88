"""The reference: a Llama decoder in plain float32 numpy, written to be read. Slow, and it stays for ever.

The network: Touvron et al. 2023 (LLaMA), with RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021),
grouped-query attention (Ainslie et al. 2023) and SwiGLU (Shazeer 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray


class ReferenceDecoder:
    """logits of a whole sequence at once; nothing is cached."""

    def __init__(self, arch: Architecture, weights: Weights) -> None:
        self.arch, self.weights = arch, weights
        head = "model.embed_tokens.weight" if arch.tied else "lm_head.weight"
        self._embedding = weights.float32("model.embed_tokens.weight")
        self._head = self._embedding if arch.tied else weights.float32(head)

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """logits_TV: row t scores the token after ids[t]."""
        x_TD = self._embedding[np.asarray(ids)]
        for layer in range(self.arch.layers):
            name = f"model.layers.{layer}."
            x_TD = x_TD + self._attention(name + "self_attn.", self._norm(name + "input_layernorm", x_TD))
            x_TD = x_TD + self._feed_forward(name + "mlp.", self._norm(name + "post_attention_layernorm", x_TD))
        return self._norm("model.norm", x_TD) @ self._head.T

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        return x @ self.weights.float32(name + ".weight").T

    def _norm(self, name: str, x_TD: FloatArray) -> FloatArray:
        mean_T1 = np.mean(np.square(x_TD), axis=-1, keepdims=True)
        return x_TD / np.sqrt(mean_T1 + np.float32(self.arch.norm_eps)) * self.weights.float32(name + ".weight")

    def _attention(self, name: str, x_TD: FloatArray) -> FloatArray:
        arch, time = self.arch, len(x_TD)
        q_THK = self._rotate(self._linear(name + "q_proj", x_TD).reshape(time, arch.heads, arch.head_dim))
        k_TGK = self._rotate(self._linear(name + "k_proj", x_TD).reshape(time, arch.kv_heads, arch.head_dim))
        v_TGK = self._linear(name + "v_proj", x_TD).reshape(time, arch.kv_heads, arch.head_dim)
        shared = arch.heads // arch.kv_heads  # query heads for each key head
        k_THK, v_THK = np.repeat(k_TGK, shared, axis=1), np.repeat(v_TGK, shared, axis=1)
        scores_HTT = np.einsum("thk,shk->hts", q_THK, k_THK) / np.float32(np.sqrt(arch.head_dim))
        scores_HTT += np.where(np.tri(time, dtype=bool), np.float32(0), np.float32(-np.inf))
        p_HTT = np.exp(scores_HTT - scores_HTT.max(axis=-1, keepdims=True))
        p_HTT /= p_HTT.sum(axis=-1, keepdims=True)
        return self._linear(name + "o_proj", np.einsum("hts,shk->thk", p_HTT, v_THK).reshape(time, -1))

    def _rotate(self, x_THK: FloatArray) -> FloatArray:
        """Turns the pair (j, j + K/2) of each head by position * theta^(-2j/K)."""
        angle_TK = angles(self.arch, len(x_THK))
        cos, sin = angle_TK[:, None, 0], angle_TK[:, None, 1]
        a, b = np.split(x_THK, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _feed_forward(self, name: str, x_TD: FloatArray) -> FloatArray:
        gate = self._linear(name + "gate_proj", x_TD)
        return self._linear(name + "down_proj", gate / (1 + np.exp(-gate)) * self._linear(name + "up_proj", x_TD))


def angles(arch: Architecture, positions: int) -> FloatArray:
    """Cosines and sines of the rotary angles: (positions, 2, head_dim / 2)."""
    rate = arch.rope_theta ** (-np.arange(0, arch.head_dim, 2) / arch.head_dim)
    angle = np.outer(np.arange(positions), rate)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
