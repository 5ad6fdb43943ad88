"""Frozen linears with something small trained beside them, and what all such models have in common.

The parts of a tuned model that are trained can be switched off, which gives the model it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError
from ladderlm.nn.blocks import Layer
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.encoder import Encoder
from ladderlm.nn.four_bits import Linear4
from ladderlm.nn.linear import linear
from ladderlm.nn.seq2seq import EncoderDecoder
from ladderlm.nn.soft import Soft
from ladderlm.types import FloatArray

Model = Decoder | Encoder | EncoderDecoder


class TunedLinear(nn.Module):
    """A frozen linear of shape (outputs, inputs), in fp32 or held in 4 bits. `off`: it answers as if untuned."""

    def __init__(self, base: nn.Linear | Linear4) -> None:
        super().__init__()
        self.off = False
        self.in_features, self.out_features = base.in_features, base.out_features
        if isinstance(base, Linear4):
            self.frozen: Linear4 | None = base
        else:
            self.frozen, self.weight, self.bias = None, base.weight, base.bias

    def initialise(self, generator: torch.Generator) -> None:
        """Values of what is trained with which nothing changes yet."""
        raise NotImplementedError

    def product(self, x_TI: Tensor) -> Tensor:
        """W x."""
        return linear(x_TI, self.weight) if self.frozen is None else self.frozen.product(x_TI)

    def plain(self, x_TI: Tensor) -> Tensor:
        """W x + b."""
        return linear(x_TI, self.weight, self.bias) if self.frozen is None else self.frozen(x_TI)

    def bias_O(self) -> Tensor | None:
        """b, if there is one."""
        return self.bias if self.frozen is None else self.frozen.bias

    def dense(self) -> Tensor:
        """W."""
        return self.weight if self.frozen is None else self.frozen.dense()

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W and b with what was trained in them."""
        raise NotImplementedError


def layers_of(model: Model) -> list[Layer]:
    """All layers, those of an encoder before those of its decoder."""
    stacks = [model.model.encoder, model.model.decoder] if isinstance(model, EncoderDecoder) else [model.model]
    return [layer for stack in stacks for layer in stack.layers if isinstance(layer, Layer)]


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Inside the block the model answers as if untuned: the reference model of DPO and RL for free."""
    parts = [m for m in model.modules() if isinstance(m, TunedLinear | Soft)]
    for part in parts:
        part.off = True
    try:
        yield
    finally:
        for part in parts:
            part.off = False


@torch.no_grad()
def merged_state(model: Model) -> dict[str, FloatArray]:
    """All weights under their canonical names, with what was trained in them: those of a model folder; copies.

    Raises UsageError for virtual tokens, which are no part of the weights.
    """
    out: dict[str, FloatArray] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Soft):
            raise UsageError("virtual tokens cannot be merged into weights", cure="keep them as an adapter")
        if isinstance(module, TunedLinear):
            weight_OI, bias_O = module.merged()
        elif isinstance(module, Linear4) and not name.endswith(".frozen"):
            weight_OI, bias_O = module.dense(), module.bias
        else:
            continue
        inside.append(name + ".")
        out[name + ".weight"] = _copy(weight_OI)
        if bias_O is not None:
            out[name + ".bias"] = _copy(bias_O)
    rest = {n: _copy(p) for n, p in model.named_parameters() if not n.startswith(tuple(inside))}
    return rest | out


def _copy(values: Tensor) -> FloatArray:
    return values.detach().cpu().numpy().astype(np.float32, copy=True)
