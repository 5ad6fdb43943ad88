"""Linears whose weights stay in 4 bits while something beside them is trained (QLoRA, Dettmers et al. 2023).

A weight is scale * level[code] + low: 16 levels, a scale (and for some a low) for each group of neighbours in a row.
Where the model's file holds 4 bits, they are taken as they are, so that what is trained on is what is served; other
weights are rounded to the paper's NormalFloat levels. The fp32 matrix exists only while it is multiplied with, forward
and again on the way back: activations need no copy of it.

Letters: T tokens, O outputs, I inputs, C groups of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm.models.quants import KINDS, Bytes, codes
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.linear import product
from ladderlm.nn.weights import fill

if TYPE_CHECKING:
    from ladderlm.models.folder import ModelFiles
    from ladderlm.models.weights import Blocks, Weights

KEPT = ("Q4_0", "Q4_1", "Q4_K", "IQ4_NL")  # kinds of files whose codes are taken as they are
GROUPS = (64, 32, 16)  # the first that divides a row is used
STEP = 2**21  # weights that are made wide at a time
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: appendix E of the paper.
NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Linear4(nn.Module):
    """x W^T + b with W in 4 bits, frozen."""

    packed_OJ: Tensor
    scale_OC: Tensor
    low_OC: Tensor | None
    pairs: Tensor

    def __init__(
        self, packed_OJ: Tensor, scale_OC: Tensor, levels: Tensor, *, low_OC: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:  # fmt: skip
        """`packed_OJ`: two neighbours in a byte, the first in its low half; `levels`: what the 16 codes stand for."""
        super().__init__()
        self.out_features, self.in_features = packed_OJ.shape[0], 2 * packed_OJ.shape[1]
        self.register_buffer("packed_OJ", packed_OJ)
        self.register_buffer("scale_OC", scale_OC)
        self.register_buffer("low_OC", low_OC)
        # What a byte stands for: two fp32 numbers side by side, looked up as the one complex number that they make.
        byte = torch.arange(256)
        both = torch.stack([levels[byte & 15], levels[byte >> 4]], 1).contiguous()
        self.register_buffer("pairs", torch.view_as_complex(both))
        self.bias = None if bias is None else nn.Parameter(bias)

    def dense(self) -> Tensor:
        """W in fp32."""
        weight_OI = torch.empty(self.out_features, self.in_features, device=self.packed_OJ.device)
        rows = max(1, STEP // self.in_features)
        for first in range(0, self.out_features, rows):
            part = slice(first, first + rows)
            wide = torch.view_as_real(self.pairs[self.packed_OJ[part].int()])
            groups = wide.view(len(wide), self.scale_OC.shape[1], -1)
            groups = groups.mul_(self.scale_OC[part, :, None])
            if self.low_OC is not None:
                groups += self.low_OC[part, :, None]
            weight_OI[part] = groups.view(len(wide), -1)
        return weight_OI

    def product(self, x_TI: Tensor) -> Tensor:
        """x W^T."""
        y_TO: Tensor = _Product.apply(x_TI, self)
        return y_TO

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO = self.product(x_TI)
        return y_TO if self.bias is None else y_TO + self.bias


class _Product(torch.autograd.Function):
    """The product with a matrix that is made anew whenever it is needed."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, layer: Linear4) -> Tensor:
        ctx.layer = layer
        return product(x_TI, layer.dense())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        grad_TO = upstream[0].contiguous()  # in 16 bits where the product was
        return product(grad_TO, ctx.layer.dense().to(grad_TO.dtype).t()), None


def rounded(weight_OI: Tensor, bias: Tensor | None = None) -> Linear4:
    """A matrix rounded to NormalFloat levels. Its rows must hold a whole number of the smallest groups."""
    outputs, inputs = weight_OI.shape
    group = next(g for g in GROUPS if inputs % g == 0)
    levels = torch.tensor(NORMAL_FLOAT)
    between = (levels[1:] + levels[:-1]) / 2
    packed_OJ = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    scale_OC = torch.empty(outputs, inputs // group, dtype=torch.float16)
    rows = max(1, STEP // inputs)
    for first in range(0, outputs, rows):
        part = slice(first, first + rows)
        groups = weight_OI[part].reshape(-1, inputs // group, group)
        scale_OC[part] = groups.abs().amax(-1).half()
        unit = groups / scale_OC[part].float().clamp(min=1e-12)[:, :, None]
        found = torch.bucketize(unit.view(-1, inputs), between).to(torch.uint8)
        packed_OJ[part] = found[:, 0::2] | (found[:, 1::2] << 4)
    return Linear4(packed_OJ, scale_OC, levels, bias=bias)


def from_blocks(blocks: Blocks, bias: Tensor | None = None) -> Linear4:
    """A matrix with the codes of its file, of a kind in KEPT: the same numbers, exactly."""
    kind = KINDS[blocks.kind]
    packed, scales, lows, levels = [], [], [], torch.arange(16.0)
    rows = max(1, STEP // blocks.cols)
    for first in range(0, blocks.rows, rows):
        data = np.ascontiguousarray(blocks.data[first : first + rows])
        found = codes(blocks.kind, data.reshape(-1, kind.bytes))
        q = found.q.reshape(len(data), -1)
        if blocks.kind == "IQ4_NL":
            steps = np.unique(codes(blocks.kind, _every_code(kind.bytes)).q)
            levels, q = torch.from_numpy(steps.astype(np.float32)), np.searchsorted(steps, q).astype(np.uint8)
        packed.append(torch.from_numpy(q[:, 0::2] | (q[:, 1::2] << 4)))
        scales.append(torch.from_numpy(found.scale.reshape(len(data), -1)))
        if found.low is not None:
            lows.append(torch.from_numpy(found.low.reshape(len(data), -1)))
        levels = levels - found.zero if not first else levels
    half = blocks.kind != "Q4_K"  # whose scales are products, and need all of fp32
    scale_OC, low_OC = (
        torch.cat(x).to(torch.float16 if half else torch.float32) if x else None for x in (scales, lows)
    )
    assert scale_OC is not None
    return Linear4(torch.cat(packed), scale_OC, levels, low_OC=low_OC, bias=bias)


def _every_code(size: int) -> Bytes:
    """A block of IQ4_NL in which every code occurs."""
    block = np.zeros((1, size), np.uint8)
    block[0, 2:18] = np.arange(16) * 17
    return block


def load_decoder4(files: ModelFiles) -> Decoder:
    """A Decoder whose layers' matrices are held in 4 bits; embeddings, head and norms are fp32.

    No fp32 copy of the whole model is ever made. A matrix whose rows hold no whole number of groups stays fp32.
    """
    with torch.device("meta"):
        decoder = Decoder(files.arch)
    places = list(_matrices(decoder))
    for _, parent, child, _ in places:
        setattr(parent, child, nn.Identity())
    fill(decoder, files)
    for name, parent, child, _ in places:
        setattr(parent, child, _linear4(files.weights, name))
    return decoder.requires_grad_(False)


def hold_in_4_bits(model: nn.Module) -> None:
    """Rounds the layers' matrices of a model that is in memory, in place; nothing where it is done already."""
    for _, parent, child, linear in list(_matrices(model)):
        bias = None if linear.bias is None else linear.bias.detach()
        setattr(parent, child, rounded(linear.weight.detach(), bias))


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """The matrices to be held in 4 bits: name, parent, name in the parent, module."""
    for name, parent in model.named_modules():
        for child, linear in parent.named_children():
            if isinstance(linear, nn.Linear) and child.endswith("_proj") and linear.in_features % GROUPS[-1] == 0:
                yield f"{name}.{child}", parent, child, linear


def _linear4(weights: Weights, name: str) -> Linear4:
    bias = torch.from_numpy(weights.float32(name + ".bias").copy()) if name + ".bias" in weights.names() else None
    blocks = weights.blocks(name + ".weight")
    if blocks is not None and blocks.kind in KEPT:
        return from_blocks(blocks, bias)
    return rounded(torch.from_numpy(np.require(weights.float32(name + ".weight"), np.float32, ["C", "W"])), bias)
