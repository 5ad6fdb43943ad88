"""Where tokens stand: rotary tables, sinusoids, and what distance adds to the scores of attention.

Letters: T tokens, S positions attended to, D model, H heads, K head dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ladderlm.models import rope
from ladderlm.nn.blocks import Turns

if TYPE_CHECKING:
    from ladderlm.models.arch import Architecture


class Positions:
    """Sines and cosines by layer, for as many positions as were needed so far.

    The tables grow with the longest document seen: a context of 128k would cost memory nobody uses.
    """

    def __init__(self, arch: Architecture) -> None:
        self._arch = arch
        self._tables: dict[tuple[bool, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, positions_T: Tensor, length: int) -> Turns:
        """What a layer's attention needs to place tokens at `positions_T` in texts of at most `length`."""
        arch = self._arch
        if arch.positions == "alibi":
            slopes_H = torch.from_numpy(rope.alibi_slopes(arch.heads)).to(positions_T.device)
            slopes_H = slopes_H * arch.scale  # Falcon scales it with the scores
            return Turns(bias=lambda back_TS: -slopes_H[:, None, None] * back_TS)
        if arch.positions != "rotary":
            return Turns()
        long = length > arch.rope_scaling.get("original_max_position_embeddings", length)
        key = arch.window(layer) > 0, long
        known = self._tables.get(key)
        if known is None or len(known[0]) < length or known[0].device != positions_T.device:
            table = torch.from_numpy(rope.table(arch, layer, max(64, 1 << (length - 1).bit_length()), length))
            table = table.to(positions_T.device)
            cos, sin = table[:, 0], table[:, 1]
            self._tables[key] = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
        cos_SK, sin_SK = self._tables[key]
        return Turns(cos_SK[positions_T], sin_SK[positions_T])


def sinusoids(positions_T: Tensor, dim: int) -> Tensor:
    """x_TD: waves of lengths from 2 pi to 20000 pi (Vaswani et al. 2017), all sines before all cosines."""
    lengths = 10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angles = positions_T.cpu()[:, None].double() / lengths  # not every device has float64
    return torch.cat([angles.sin(), angles.cos()[:, : dim // 2]], 1).float().to(positions_T.device)


class RelativeBias(nn.Module):
    """A learned score for each head and distance, far ones sharing buckets (Raffel et al. 2019).

    Half of the buckets hold one distance each, the other half ever longer ranges up to `relative_distance`, the last
    also all beyond. Where a layer sees both ways, half of all buckets are for what lies ahead.
    """

    def __init__(self, arch: Architecture, *, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(arch.relative_buckets, arch.heads))
        self.buckets, self.distance, self.causal = arch.relative_buckets, arch.relative_distance, causal

    def forward(self, back_TS: Tensor) -> Tensor:
        """bias_HTS for keys that lie so far back."""
        return self.weight[self.bucket(back_TS)].permute(2, 0, 1)

    def bucket(self, back_TS: Tensor) -> Tensor:
        """The number of each distance's bucket."""
        count = self.buckets if self.causal else self.buckets // 2
        far_TS = back_TS.clamp(min=0) if self.causal else back_TS.abs()
        near = count // 2
        steps_TS = (far_TS.clamp(min=1).float() / near).log() / math.log(self.distance / near) * (count - near)
        bucket_TS = torch.where(far_TS < near, far_TS, (near + steps_TS.long()).clamp(max=count - 1))
        return bucket_TS if self.causal else bucket_TS + count * (back_TS < 0)
