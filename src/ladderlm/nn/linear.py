"""The matrix product of a layer, by whichever of torch's libraries is the faster on this processor.

torch's own product goes through MKL, which on AMD processors leaves their AVX-512 units idle. oneDNN, which torch has
too, uses them: its products are twice as fast there, forward and backward.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 64  # below this the product is bound by reading the weights, and the shorter way is quicker


@functools.cache
def _amd_with_avx512() -> bool:
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return False
    return "AuthenticAMD" in cpu and "avx512f" in cpu and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(x_TI: Tensor) -> bool:
    """Whether oneDNN is to multiply these rows: fp32 on an AMD processor, and enough of them."""
    return (
        x_TI.dim() == 2
        and x_TI.shape[0] >= FEWEST_ROWS
        and x_TI.device.type == "cpu"
        and x_TI.dtype == torch.float32
        and _amd_with_avx512()
        and not torch.is_autocast_enabled("cpu")
    )


def product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x_TI times the transposed weight_OI, and the bias, without a way back: y_TO."""
    if _onednn(x_TI):
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
        return y_TO
    return F.linear(x_TI, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    """`product` with its gradients by the same library."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return product(x_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x_TI, weight_OI), grad_TO = ctx.saved_tensors, upstream[0].contiguous()
        return (
            product(grad_TO, weight_OI.t()) if ctx.needs_input_grad[0] else None,
            product(grad_TO.t(), x_TI.t()) if ctx.needs_input_grad[1] else None,
            grad_TO.sum(0) if ctx.needs_input_grad[2] else None,
        )


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x_TI times the transposed weight_OI, and the bias: y_TO."""
    if not _onednn(x_TI):
        return F.linear(x_TI, weight_OI, bias_O)
    y_TO: Tensor = _Linear.apply(x_TI, weight_OI, bias_O)
    return y_TO


class Linear(nn.Linear):
    """A linear layer, without bias unless asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x_TI: Tensor) -> Tensor:
        return linear(x_TI, self.weight, self.bias)
