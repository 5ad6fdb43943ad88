"""The matrix product of a layer, by whichever of torch's libraries is the faster on this processor.

torch's own product in fp32 goes through MKL, which on AMD processors leaves their AVX-512 units idle. A convolution with
a 1 x 1 kernel is the same product, goes through oneDNN, and is faster there, forward and backward.
"""

from __future__ import annotations

import functools
from pathlib import Path

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
    return "AuthenticAMD" in cpu and "avx512f" in cpu


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """x_TI times the transposed weight_OI: y_TO."""
    rows = x_TI.shape[0]
    usual = x_TI.dim() != 2 or rows < FEWEST_ROWS or x_TI.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if usual or not _amd_with_avx512():
        return F.linear(x_TI, weight_OI)
    # One picture, one pixel per row, channels last: both views keep the memory as it is.
    picture = x_TI.contiguous().view(1, rows, 1, -1).permute(0, 3, 1, 2)
    return F.conv2d(picture, weight_OI[:, :, None, None]).permute(0, 2, 3, 1).reshape(rows, -1)


class Linear(nn.Linear):
    """A linear layer, without bias unless asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO = linear(x_TI, self.weight)
        return y_TO if self.bias is None else y_TO + self.bias
