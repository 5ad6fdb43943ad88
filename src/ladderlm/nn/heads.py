"""What stands on a network's hidden states: scores over the vocabulary, classes, poolers.

Letters: N wanted positions, B documents, T tokens, D model, V vocabulary, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ladderlm.nn.blocks import ACTIVATIONS, Norm, scores
from ladderlm.nn.linear import Linear

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture


class Vocabulary(nn.Module):
    """logits_NV by the embeddings or, where they are not tied, by a matrix of its own."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.scale, self.cap = arch.logit_scale, arch.logit_cap
        self.weight = None if arch.tied else nn.Parameter(torch.zeros(arch.vocab_size, arch.dim))
        self.bias = nn.Parameter(torch.zeros(arch.vocab_size)) if arch.head_bias else None

    def forward(self, hidden_ND: Tensor, embedding_VD: Tensor) -> Tensor:
        head_VD = embedding_VD if self.weight is None else self.weight
        logits_NV = scores(hidden_ND if self.scale == 1.0 else hidden_ND * self.scale, head_VD, self.cap)
        return logits_NV if self.bias is None else logits_NV + self.bias


class Pooler(nn.Module):
    """A linear layer and an activation."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.dense, self.act = Linear(arch.dim, arch.dim, True), ACTIVATIONS[arch.pooler]

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.act(self.dense(x_BD))


class Transform(nn.Module):
    """A linear layer, an activation and a norm."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.dense, self.act = Linear(arch.dim, arch.dim, arch.transform_bias), ACTIVATIONS[arch.transform]
        self.norm = Norm(arch)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x_ND)))


def first(hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first token's hidden state of every document: x_BD."""
    starts = itertools.accumulate(lengths[:-1], initial=0)
    return hidden_TD[torch.tensor(list(starts), device=hidden_TD.device)]


def mean(hidden_TD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean hidden state of every document: x_BD."""
    counts_B = torch.tensor(lengths, device=hidden_TD.device)
    document_T = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)], device=hidden_TD.device)
    sum_BD = hidden_TD.new_zeros(len(lengths), hidden_TD.shape[1]).index_add(0, document_T, hidden_TD)
    return sum_BD / counts_B[:, None]
