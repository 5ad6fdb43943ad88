"""Causal attention of short texts as plain matrix products, for processors that multiply in bfloat16.

torch's blocked attention makes its products in tiles too small for those units: up to a few hundred tokens it is
quicker to hold all shares of a text at once. Letters: N heads of all texts, T queries, S positions, K head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # tokens; the shares of longer texts outgrow the caches, and the memory


def narrow(x: Tensor) -> Tensor:
    """`x` in the 16 bits that products are made in, where autocasting is on: cast once for all that read it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def suits(q_BHTK: Tensor, seen: int) -> bool:
    """Whether `attend` is the quicker way for such queries of so many positions."""
    on = q_BHTK.device.type == "cpu" and q_BHTK.requires_grad and torch.is_autocast_enabled("cpu")
    return on and seen <= LONGEST


def _unseen(length: int) -> Tensor:
    """bias_TT: -inf where a key comes after its query."""
    return torch.full((length, length), -math.inf).triu(1)


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scale: float, bias_TS: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Mixed values o_BHTK: causally, or with `bias_TS` added to the scores."""
    flat = (narrow(x).reshape(-1, *x.shape[2:]) for x in (q_BHTK, k_BHSK, v_BHSK))
    mixed: Tensor = _Dense.apply(*flat, _unseen(q_BHTK.shape[2]) if bias_TS is None else bias_TS, scale)
    return mixed.view(q_BHTK.shape)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NTK: Tensor, k_NSK: Tensor, v_NSK: Tensor, bias_TS: Tensor, scale: float) -> Tensor:
        scores_NTS = torch.bmm(q_NTK * scale, k_NSK.mT).float()
        shares_NTS = scores_NTS.add_(bias_TS).softmax(-1).to(q_NTK.dtype)
        ctx.save_for_backward(q_NTK, k_NSK, v_NSK, shares_NTS)
        ctx.scale = scale
        return torch.bmm(shares_NTS, v_NSK)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_NTK, k_NSK, v_NSK, shares_NTS = ctx.saved_tensors
        grad_NTK = upstream[0].to(q_NTK.dtype)
        slope_NTS = torch.bmm(grad_NTK, v_NSK.mT)
        slope_NTS = torch._softmax_backward_data(slope_NTS, shares_NTS, -1, shares_NTS.dtype)
        return (
            torch.bmm(slope_NTS, k_NSK) * ctx.scale, torch.bmm(slope_NTS.mT, q_NTK) * ctx.scale,
            torch.bmm(shares_NTS.mT, grad_NTK), None, None,
        )  # fmt: skip
