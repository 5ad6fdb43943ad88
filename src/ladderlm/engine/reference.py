"""The reference: every decoder-only family in plain float32 numpy, written to be read. Slow, and it stays for ever.

The networks: Vaswani et al. 2017 and what came after: RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al.
2021), ALiBi (Press et al. 2021), grouped-query attention (Ainslie et al. 2023), gated feed-forward layers (Shazeer
2020), mixtures of experts (Shazeer et al. 2017). `Architecture` says which parts a model has.

Letters: T tokens, S positions so far, D model, H heads, G key heads, K head dim, E experts, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from ladderlm.models import rope
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray


class Past(Protocol):
    """Keys and values of the tokens before these."""

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Appends to a layer's; all of them, (S, G, K)."""


class NoPast:
    """The text begins here."""

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        return k_TGK, v_TGK


class ReferenceDecoder:
    """Logits of a whole text at once, or of a text's next tokens when given its past.

    `lora`: matrix name -> (A (rank, in), B (out, rank)), whose B A is added to the matrix (Hu et al. 2021).
    """

    def __init__(
        self, arch: Architecture, weights: Weights, lora: Mapping[str, tuple[FloatArray, FloatArray]] | None = None
    ) -> None:
        self.arch, self.weights, self._lora = arch, weights, lora or {}
        self._held = set(weights.names())

    @functools.cached_property
    def _embedding(self) -> FloatArray:
        return self.weights.float32("model.embed_tokens.weight")

    @functools.cached_property
    def _head(self) -> FloatArray:
        return self._embedding if self.arch.tied else self.weights.float32("lm_head.weight")

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """logits_TV: row t scores the token after ids[t]."""
        return self.score(self.hidden(ids))

    def score(self, x_TD: FloatArray) -> FloatArray:
        """logits_TV of hidden states."""
        logits_TV: FloatArray = x_TD @ self._head.T
        return _capped(logits_TV, self.arch.logit_cap)

    def hidden(self, ids: Sequence[int], start: int = 0, past: Past | None = None) -> FloatArray:
        """hidden_TD after the last norm, of tokens at positions from `start` that follow `past`."""
        return self.hidden_of(self._embedding[np.asarray(ids)] * np.float32(self.arch.embed_scale), start, past)

    def hidden_of(self, x_TD: FloatArray, start: int = 0, past: Past | None = None) -> FloatArray:
        """The same of embeddings: tokens' own, scaled, or learned ones."""
        arch, past = self.arch, past or NoPast()
        positions_T = np.arange(start, start + len(x_TD))
        if arch.positions == "learned":
            x_TD = x_TD + self.weights.float32("model.embed_positions.weight")[positions_T + arch.position_offset]
        for layer in range(arch.layers):
            x_TD = self._layer(layer, x_TD, positions_T, past)
        return x_TD if arch.placement == "post" else self._norm("model.norm", x_TD)

    def _layer(self, layer: int, x_TD: FloatArray, positions_T: np.ndarray, past: Past) -> FloatArray:
        name = f"model.layers.{layer}."
        normed_TD = self._norm(name + "input_layernorm", x_TD)
        mixed_TD = self._attention(layer, normed_TD, positions_T, past)
        if self.arch.placement == "parallel":
            beside_TD = self._norm(name + "post_attention_layernorm", x_TD) if self.arch.two_norms else normed_TD
            return x_TD + mixed_TD + self._mlp(name + "mlp.", beside_TD)
        if self.arch.placement == "post":
            x_TD = self._norm(name + "attention_out_norm", x_TD + mixed_TD)
            return self._norm(name + "mlp_out_norm", x_TD + self._mlp(name + "mlp.", x_TD))
        x_TD = x_TD + self._norm(name + "attention_out_norm", mixed_TD)
        out_TD = self._mlp(name + "mlp.", self._norm(name + "post_attention_layernorm", x_TD))
        return x_TD + self._norm(name + "mlp_out_norm", out_TD)

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        y: FloatArray = x @ self.weights.float32(name + ".weight").T
        if pair := self._lora.get(name + ".weight"):
            y += (x @ pair[0].T) @ pair[1].T
        return y + self.weights.float32(name + ".bias") if name + ".bias" in self._held else y

    def _norm(self, name: str, x: FloatArray, kind: str = "") -> FloatArray:
        """The norm of that name; x itself where the model has none."""
        if name + ".weight" not in self._held:
            return x
        weight = self.weights.float32(name + ".weight") + np.float32(self.arch.norm_offset)
        if (kind or self.arch.norm) == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(self.arch.norm_eps)) * weight
        return x + self.weights.float32(name + ".bias") if name + ".bias" in self._held else x

    def _project(
        self, layer: int, x_TD: FloatArray, positions_T: np.ndarray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """q_THK, k_TGK and v_TGK, normed and turned."""
        arch, time, name = self.arch, len(x_TD), f"model.layers.{layer}.self_attn."
        q, k = self._linear(name + "q_proj", x_TD), self._linear(name + "k_proj", x_TD)
        if arch.qk_norm == "all":
            q, k = self._norm(name + "q_norm", q), self._norm(name + "k_norm", k)
        q_THK, k_TGK = q.reshape(time, arch.heads, -1), k.reshape(time, arch.kv_heads, -1)
        if arch.qk_norm == "head":
            q_THK, k_TGK = self._norm(name + "q_norm", q_THK), self._norm(name + "k_norm", k_TGK)
        elif arch.qk_norm == "heads":
            q_THK, k_TGK = (
                np.stack([self._norm(f"{name}{x}_norm.norms.{h}", v[:, h]) for h in range(v.shape[1])], 1)
                for x, v in (("q", q_THK), ("k", k_TGK))
            )
        if arch.positions == "rotary" and layer not in arch.unrotated:
            q_THK, k_TGK = (self._rotate(layer, x, positions_T) for x in (q_THK, k_TGK))
        return q_THK, k_TGK, self._linear(name + "v_proj", x_TD).reshape(time, arch.kv_heads, -1)

    def _attention(self, layer: int, x_TD: FloatArray, positions_T: np.ndarray, past: Past) -> FloatArray:
        arch, time, name = self.arch, len(x_TD), f"model.layers.{layer}.self_attn."
        q_THK, k_TGK, v_TGK = self._project(layer, x_TD, positions_T)
        k_SGK, v_SGK = past.extend(layer, k_TGK, v_TGK)
        q_GRTK = q_THK.reshape(time, arch.kv_heads, -1, arch.head_dim).transpose(1, 2, 0, 3)
        scores_GRTS = q_GRTK @ k_SGK.transpose(1, 2, 0)[:, None] * np.float32(arch.scale)
        scores_GRTS = _capped(scores_GRTS, arch.attention_cap) + self._bias(layer, positions_T, len(k_SGK))
        p_GRTS = softmax(scores_GRTS)
        mixed_TD = (p_GRTS @ v_SGK.transpose(1, 0, 2)[:, None]).transpose(2, 0, 1, 3).reshape(time, -1)
        return self._linear(name + "o_proj", mixed_TD)

    def _bias(self, layer: int, positions_T: np.ndarray, seen: int) -> FloatArray:
        """What is added to scores: minus infinity on what is not seen; (G, R, T, S), (1, 1, T, S) or less."""
        back_TS = positions_T[:, None] - np.arange(seen)
        window = self.arch.window(layer)
        hidden_TS = (back_TS < 0) | (back_TS >= window) if window else back_TS < 0
        bias_TS = np.where(hidden_TS, np.float32(-np.inf), np.float32(0))
        if self.arch.positions != "alibi":
            return bias_TS
        slopes_GR11 = rope.alibi_slopes(self.arch.heads).reshape(self.arch.kv_heads, -1, 1, 1)
        return bias_TS - slopes_GR11 * np.float32(self.arch.scale) * back_TS.astype(np.float32)

    def _rotate(self, layer: int, x_THK: FloatArray, positions_T: np.ndarray) -> FloatArray:
        """Turns the pairs (j, j + W/2) of the first W coordinates of each head; the rest stay."""
        end = int(positions_T.max()) + 1
        table = rope.table(self.arch, layer, end, end)[positions_T]
        cos, sin = table[:, None, 0], table[:, None, 1]
        half = cos.shape[-1]
        a, b, rest = x_THK[..., :half], x_THK[..., half : 2 * half], x_THK[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    def _mlp(self, name: str, x_TD: FloatArray) -> FloatArray:
        if name + "gate.weight" in self._held:
            return self._experts(name, x_TD)
        up = self._linear(name + "up_proj", x_TD)
        act = ACTIVATIONS[self.arch.activation]
        inner = act(self._linear(name + "gate_proj", x_TD)) * up if self.arch.gated else act(up)
        return self._linear(name + "down_proj", inner)

    def _experts(self, name: str, x_TD: FloatArray) -> FloatArray:
        share_TE = softmax(self._linear(name + "gate", x_TD))
        chosen_TE = np.argsort(-share_TE, axis=-1, kind="stable")[:, : self.arch.experts_used]
        picked_TE = np.take_along_axis(share_TE, chosen_TE, -1)
        if self.arch.expert_weights_normed:
            picked_TE = picked_TE / picked_TE.sum(axis=-1, keepdims=True)
        out_TD = np.zeros_like(x_TD)
        for expert in np.unique(chosen_TE):
            rows, place = np.nonzero(chosen_TE == expert)
            out_TD[rows] += picked_TE[rows, place, None] * self._mlp(f"{name}experts.{expert}.", x_TD[rows])
        if self.arch.shared_hidden:
            gate = 1 / (1 + np.exp(-self._linear(name + "shared_expert_gate", x_TD)))
            out_TD += gate * self._mlp(name + "shared_expert.", x_TD)
        return out_TD


def _capped(x: FloatArray, cap: float) -> FloatArray:
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def softmax(x: FloatArray) -> FloatArray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def _silu(x: FloatArray) -> FloatArray:
    return x / (1 + np.exp(-np.maximum(x, np.float32(-80))))


def _gelu(x_TF: FloatArray) -> FloatArray:
    """x times the normal distribution function, by Abramowitz and Stegun 7.1.26 (within 5e-7 of max(1, |x|))."""
    out_TF = np.empty_like(x_TF)
    for first in range(0, len(x_TF), 32):  # few rows at a time stay in the processor's cache
        x = x_TF[first : first + 32]
        z = np.abs(x) * np.float32(math.sqrt(0.5))
        t = 1 / (1 + np.float32(0.3275911) * z)
        poly = np.float32(1.061405429) * t
        for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            poly = (poly + np.float32(c)) * t
        tail = np.float32(0.5) * poly * np.exp(-z * z)  # what lies beyond |x|
        out_TF[first : first + 32] = x * np.where(x > 0, 1 - tail, tail)
    return out_TF


def _gelu_tanh(x: FloatArray) -> FloatArray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
}
