"""The matrix product of a layer, by whichever of torch's libraries is the faster on this processor.

torch's own product goes through MKL, which on AMD processors leaves their AVX-512 units idle. oneDNN, which torch has
too, uses them: its products are twice as fast there, forward and backward.

Layers that train can multiply 8-bit integers instead, for processors that do that fast and bfloat16 not at all: the way
forward and the gradient of the input are made of integers, each row and each column with a scale of its own; the
gradient of the weights, which sums over all tokens, stays exact (SwitchBack, Wortsman et al. 2023, arXiv 2304.13013).
Letters: T tokens, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
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


_integers: ContextVar[bool] = ContextVar("integers", default=False)


def products(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """Layers that train multiply in "bf16", in "int8", or as they are ("fp32") meanwhile."""
    if precision == "int8":
        return integer_products()
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def integer_products() -> Iterator[None]:
    """Layers that train multiply integers meanwhile."""
    before = _integers.set(True)
    try:
        yield
    finally:
        _integers.reset(before)


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(integers, scale): the largest number along `dim` becomes 127."""
    scale = x.abs().amax(dim, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).to(torch.int8), scale


class _Integers(torch.autograd.Function):
    """x_TI times the transposed weight_OI, both rounded to 8 bits: y_TO."""

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
        return grad_TI, product(grad_TO.t(), x_TI.t())


class Linear(nn.Linear):
    """A linear layer, without bias unless asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x_TI: Tensor) -> Tensor:
        if _integers.get() and self.weight.requires_grad and x_TI.dim() == 2 and len(x_TI) >= FEWEST_ROWS:
            y_TO: Tensor = _Integers.apply(x_TI, self.weight)
            return y_TO if self.bias is None else y_TO + self.bias
        return linear(x_TI, self.weight, self.bias)
