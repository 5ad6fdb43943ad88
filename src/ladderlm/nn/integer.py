"""Products of 8-bit integers in training, for processors that multiply bytes fast and bfloat16 not at all.

The way forward and the gradient of the input are made of integers, each row and each column with a scale of its own;
the gradient of the weights, which sums over all tokens and is what is learnt from, stays exact (cf. Wortsman et al.
2023, arXiv 2304.13013, SwitchBack). Letters: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_on: ContextVar[bool] = ContextVar("integer_products", default=False)
FEWEST_ROWS = 64  # below this, making integers costs more than it saves


@contextlib.contextmanager
def integer_products() -> Iterator[None]:
    """Layers multiply integers meanwhile, where they train."""
    before = _on.set(True)
    try:
        yield
    finally:
        _on.reset(before)


def suits(x_TI: Tensor, weight_OI: Tensor) -> bool:
    """Whether a layer is to multiply integers."""
    return _on.get() and weight_OI.requires_grad and x_TI.dim() == 2 and len(x_TI) >= FEWEST_ROWS


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """x_TI times the transposed weight_OI, about: y_TO."""
    y_TO: Tensor = _Integer.apply(x_TI, weight_OI)
    return y_TO


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(integers, scale): the largest number along `dim` becomes 127."""
    scale = x.abs().amax(dim, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).to(torch.int8), scale


class _Integer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        (x8_TI, scale_T1), (w8_OI, scale_O1) = _rounded(x_TI, 1), _rounded(weight_OI, 1)
        return torch._int_mm(x8_TI, w8_OI.t()).float().mul_(scale_T1).mul_(scale_O1.t())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        (x_TI, weight_OI), grad_TO = ctx.saved_tensors, upstream[0].contiguous()
        (g8_TO, scale_T1), (w8_OI, scale_1I) = _rounded(grad_TO, 1), _rounded(weight_OI, 0)
        grad_TI = torch._int_mm(g8_TO, w8_OI).float().mul_(scale_T1).mul_(scale_1I)
        return grad_TI, exact(grad_TO.t(), x_TI.t())
