"""Matrices that stay as small on the device as their file holds them: 4 or 8 bits a weight with a scale per group.

Weight-only: a group's codes become w = scale * q + low in the multiplication, so what is computed is what the file
says, to the rounding of the device's dtype. Letters: O outputs, I inputs, N rows, C groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.models.quants import KINDS, codes
from ladderlm.models.weights import Blocks, Weights
from ladderlm.nn.linear import linear

NIBBLES = ("Q4_0", "Q4_1", "Q4_K")  # kinds whose codes are 0..15


class Form(NamedTuple):
    """How a matrix is kept: `bits` a weight in groups of `group`, with a minimum if `low`; 0 bits: as floats."""

    bits: int = 0
    group: int = 0
    low: bool = False


def form(weights: Weights, name: str) -> Form:
    """The form of a matrix that keeps what its file says of it."""
    blocks = weights.blocks(name)
    if blocks is None or KINDS[blocks.kind].weights == 1:
        return Form()
    found = codes(blocks.kind, blocks.data[:1].reshape(-1, KINDS[blocks.kind].bytes))
    bits = 4 if blocks.kind in NIBBLES else 8
    return Form(bits, KINDS[blocks.kind].weights // found.scale.shape[1], bits == 4 or found.low is not None)


@dataclass(slots=True)
class Adapted:
    """The low-rank updates in force for all rows of a pass: tensor name -> (A, B), W + B A."""

    pairs: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Matrix(nn.Module):
    """Matrices of one width and form, one below the other, and their biases: x W^T + b, or single rows of W.

    `names` without ".weight"; `adapted` is shared by all of a network. `load` fills it, in place when called again.
    """

    weight: Tensor
    q_OI: Tensor
    scale_OC: Tensor
    low_OC: Tensor | None
    bias: Tensor | None

    def __init__(
        self, weights: Weights, names: Sequence[str], adapted: Adapted, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.adapted = adapted
        self.names, self.dtype, self.form = tuple(names), dtype, form(weights, names[0] + ".weight")
        shapes = [weights.shape(name + ".weight") for name in names]
        self.sizes = [rows for rows, _ in shapes]
        rows, cols = sum(self.sizes), shapes[0][1]

        def buffer(name: str, width: int, kind: torch.dtype) -> None:
            self.register_buffer(name, torch.zeros(rows, width, dtype=kind, device=device))

        if not self.form.bits:
            buffer("weight", cols, dtype)
        else:
            exact = torch.float32 if dtype == torch.float32 else torch.float16
            buffer("q_OI", cols * self.form.bits // 8, torch.uint8 if self.form.bits == 4 else torch.int8)
            buffer("scale_OC", cols // self.form.group, exact)
            if self.form.low:
                buffer("low_OC", cols // self.form.group, exact)
            else:
                self.low_OC = None
        biased = names[0] + ".bias" in weights.names()
        self.register_buffer("bias", torch.zeros(rows, dtype=dtype, device=device) if biased else None)
        self.load(weights)

    def check(self, weights: Weights) -> None:
        """Raises UsageError where `weights` have other precisions than the first ones."""
        for name in self.names:
            if form(weights, name + ".weight") != self.form:
                raise UsageError("new weights must have the precision of the old", where=name)

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Fills in `weights`, which must have the shapes and precisions of the first ones."""
        row = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            rows = slice(row, row + size)
            if self.form.bits:
                blocks = weights.blocks(name + ".weight")
                assert blocks is not None
                self._load_codes(blocks, rows)
            else:
                self.weight[rows].copy_(host(weights, name + ".weight"))
            if self.bias is not None:
                self.bias[rows].copy_(host(weights, name + ".bias"))
            row += size

    def _load_codes(self, blocks: Blocks, rows: slice) -> None:
        step = max(1, 2**22 // blocks.cols)  # some megabytes at a time
        for first in range(0, blocks.rows, step):
            data = blocks.data[first : first + step]
            found = codes(blocks.kind, np.ascontiguousarray(data).reshape(-1, KINDS[blocks.kind].bytes))
            q = found.q.reshape(len(data), -1)
            to = slice(rows.start + first, rows.start + first + len(data))
            low = np.zeros_like(found.scale) if found.low is None else found.low
            if self.form.bits == 4:
                low = low - np.float32(found.zero) * found.scale
                self.q_OI[to].copy_(torch.from_numpy(q[:, 0::2] | (q[:, 1::2] << 4)))
            else:
                self.q_OI[to].copy_(torch.from_numpy((q.astype(np.int16) - found.zero).astype(np.int8)))
            self.scale_OC[to].copy_(torch.from_numpy(found.scale.reshape(len(data), -1)))
            if self.low_OC is not None:
                self.low_OC[to].copy_(torch.from_numpy(low.reshape(len(data), -1)))

    def forward(self, x_NI: Tensor) -> Tensor:
        y_NO = linear(x_NI, self.dense())
        if self.bias is not None:
            y_NO = y_NO + self.bias
        return self._update(x_NI, y_NO) if self.adapted.pairs else y_NO

    def _update(self, x_NI: Tensor, y_NO: Tensor) -> Tensor:
        parts = list(y_NO.split(self.sizes, -1))
        for i, name in enumerate(self.names):
            if name + ".weight" in self.adapted.pairs:
                a_RI, b_OR = self.adapted.pairs[name + ".weight"]
                parts[i] = parts[i] + linear(linear(x_NI, a_RI), b_OR)
        return torch.cat(parts, -1)

    def dense(self) -> Tensor:
        """W in the dtype that is computed in."""
        if not self.form.bits:
            return self.weight
        return self._widened(self.q_OI, self.scale_OC, self.low_OC)

    def rows(self, ids_N: Tensor) -> Tensor:
        """Rows of W: embeddings."""
        if not self.form.bits:
            return self.weight[ids_N]
        return self._widened(
            self.q_OI[ids_N], self.scale_OC[ids_N], None if self.low_OC is None else self.low_OC[ids_N]
        )

    def _widened(self, q_OI: Tensor, scale_OC: Tensor, low_OC: Tensor | None) -> Tensor:
        if self.form.bits == 4:
            q_OI = torch.stack([q_OI & 15, q_OI >> 4], -1).flatten(1)
        w_OCI = q_OI.view(len(q_OI), -1, self.form.group).float() * scale_OC[:, :, None]
        if low_OC is not None:
            w_OCI = w_OCI + low_OC[:, :, None]
        return w_OCI.flatten(1).to(self.dtype)


class Rows(nn.Module):
    """A Matrix as a table of embeddings."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, ids_N: Tensor) -> Tensor:
        return self.matrix.rows(ids_N)


class Joined(nn.Module):
    """Several linears of one input, those of one form in one product; gives their outputs apart."""

    def __init__(self, names: Sequence[str], weights: Weights, make: Callable[[Sequence[str]], Matrix]) -> None:
        super().__init__()
        groups: list[list[str]] = []
        for name in names:
            if groups and form(weights, groups[-1][0] + ".weight") == form(weights, name + ".weight"):
                groups[-1].append(name)
            else:
                groups.append([name])
        self.matrices = nn.ModuleList(make(group) for group in groups)

    def forward(self, x_NI: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for m in self.matrices for y in m(x_NI).split(m.sizes, -1))


def host(weights: Weights, name: str) -> Tensor:
    """A tensor as float32 in this process's memory."""
    return torch.from_numpy(np.require(weights.float32(name), np.float32, ["C", "W"]))
