"""An encoder in plain numpy: BERT and its kin without torch, up to their hidden states.

Documents lie end to end, so that nothing is padded; those of one length that are neighbours share their attention.
Letters: T tokens of all documents, B documents of one length, S tokens of one, the rest as in reference.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ladderlm.engine.reference import Past, ReferenceDecoder, softmax
from ladderlm.types import FloatArray


class ReferenceEncoder(ReferenceDecoder):
    """The reference's layers, but each token sees the whole of its document, as far as a window allows."""

    def hidden_each(self, documents: Sequence[Sequence[int]]) -> list[FloatArray]:
        """hidden_SD of every document. All tokens are of type 0."""
        arch, lengths = self.arch, [len(d) for d in documents]
        positions_T = np.concatenate([np.arange(n) for n in lengths])
        x_TD = self._embedding[np.concatenate([np.asarray(d) for d in documents])] * np.float32(arch.embed_scale)
        if arch.positions == "learned":
            x_TD = x_TD + self.weights.float32("model.embed_positions.weight")[positions_T + arch.position_offset]
        if arch.token_types:
            x_TD = x_TD + self.weights.float32("model.embed_types.weight")[0]
        x_TD = self._norm("model.embed_norm", x_TD)
        for layer in range(arch.layers):
            x_TD = self._layer(layer, x_TD, positions_T, _Lengths(lengths))
        x_TD = x_TD if arch.placement == "post" else self._norm("model.norm", x_TD)
        return np.split(x_TD, np.cumsum(lengths)[:-1])

    def _attention(self, layer: int, x_TD: FloatArray, positions_T: np.ndarray, past: Past) -> FloatArray:
        assert isinstance(past, _Lengths)
        arch, start = self.arch, 0
        q_THK, k_TGK, v_TGK = self._project(layer, x_TD, positions_T)
        mixed_TD = np.empty((len(x_TD), arch.heads * arch.head_dim), np.float32)
        for length, run in itertools.groupby(past.lengths):
            count = len(list(run))
            end = start + count * length
            q_BHSK, k_BGSK, v_BGSK = (
                x[start:end].reshape(count, length, -1, arch.head_dim).transpose(0, 2, 1, 3)
                for x in (q_THK, k_TGK, v_TGK)
            )
            q_BGRSK = q_BHSK.reshape(count, arch.kv_heads, -1, length, arch.head_dim)
            scores_BGRSS = q_BGRSK @ k_BGSK.transpose(0, 1, 3, 2)[:, :, None] * np.float32(arch.scale)
            if window := arch.window(layer):
                back_SS = np.abs(np.arange(length)[:, None] - np.arange(length))
                scores_BGRSS = np.where(back_SS > window // 2, np.float32(-np.inf), scores_BGRSS)
            o_BGRSK = softmax(scores_BGRSS) @ v_BGSK[:, :, None]
            mixed_TD[start:end] = o_BGRSK.transpose(0, 3, 1, 2, 4).reshape(end - start, -1)
            start = end
        return self._linear(f"model.layers.{layer}.self_attn.o_proj", mixed_TD)


class _Lengths:
    """In the place of a past: where each document ends. Nothing came before."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def extend(self, layer: int, k_TGK: FloatArray, v_TGK: FloatArray) -> tuple[FloatArray, FloatArray]:
        return k_TGK, v_TGK
