"""Causal attention of short texts as plain matrix products, for processors that multiply in bfloat16.

torch's blocked attention makes its products in tiles too small for those units: up to a few hundred tokens it is
quicker to hold all shares of a text at once. Letters: N heads of all texts, T tokens, K head dim.
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


def suits(x_BHTK: Tensor) -> bool:
    """Whether `attend` is the quicker way for such queries."""
    on = x_BHTK.device.type == "cpu" and x_BHTK.requires_grad and torch.is_autocast_enabled("cpu")
    return on and x_BHTK.shape[2] <= LONGEST


def _unseen(length: int) -> Tensor:
    """bias_TT: -inf where a key comes after its query."""
    return torch.full((length, length), -math.inf).triu(1)


def attend(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, scale: float) -> Tensor:
    """Causally mixed values o_BHTK."""
    shape = q_BHTK.shape
    flat = (narrow(x).reshape(-1, *shape[2:]) for x in (q_BHTK, k_BHTK, v_BHTK))
    mixed: Tensor = _Dense.apply(*flat, scale)
    return mixed.view(shape)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NTK: Tensor, k_NTK: Tensor, v_NTK: Tensor, scale: float) -> Tensor:
        scores_NTT = torch.bmm(q_NTK * scale, k_NTK.mT).float()
        shares_NTT = scores_NTT.add_(_unseen(q_NTK.shape[1])).softmax(-1).to(q_NTK.dtype)
        ctx.save_for_backward(q_NTK, k_NTK, v_NTK, shares_NTT)
        ctx.scale = scale
        return torch.bmm(shares_NTT, v_NTK)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_NTK, k_NTK, v_NTK, shares_NTT = ctx.saved_tensors
        grad_NTK = upstream[0].to(q_NTK.dtype)
        slope_NTT = torch.bmm(grad_NTK, v_NTK.mT)
        slope_NTT = torch._softmax_backward_data(slope_NTT, shares_NTT, -1, shares_NTT.dtype)
        return (
            torch.bmm(slope_NTT, k_NTK) * ctx.scale, torch.bmm(slope_NTT.mT, q_NTK) * ctx.scale,
            torch.bmm(shares_NTT.mT, grad_NTK), None,
        )  # fmt: skip
