"""Low-rank adapters (Hu et al. 2021): y = W x + (alpha / rank) B A x with W frozen, A and B trained.

Tensors leave under the names that PEFT gives them, so that its adapter folders and ours are one format.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError, nearest
from ladderlm.nn.blocks import Layer
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.linear import Linear, linear
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.adapter import LoraConfig


class LoraLinear(nn.Module):
    """A frozen linear of shape (outputs, inputs) and its update of rank R. Starts as the frozen one: B is zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        self.lora_A = Linear(base.in_features, rank)
        self.lora_B = Linear(rank, base.out_features)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.lora_A.in_features)
        self.lora_A.weight.uniform_(-bound, bound, generator=generator)
        self.lora_B.weight.zero_()

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO = linear(x_TI, self.weight, self.bias)
        return torch.addmm(y_TO, self.lora_A(x_TI), self.lora_B.weight.t(), alpha=self.scale)


def add_lora(decoder: Decoder, config: LoraConfig, *, seed: int = 0, layers_trained: int = 0) -> Decoder:
    """Freezes `decoder` and gives the linears named in `config.targets` an adapter, in place.

    `layers_trained` > 0: only in that many last layers; the backward pass then stops below them.
    Raises UsageError for a target that no layer has.
    """
    linears = {n.rsplit(".", 1)[-1] for n, m in decoder.model.layers.named_modules() if isinstance(m, nn.Linear)}
    for target in config.targets:
        if target not in linears:
            raise UsageError(f"no linear named {target!r}", where="targets", cure=nearest(target, linears))
    if not 0 <= layers_trained <= decoder.arch.layers:
        raise UsageError(f"layers_trained must be 0 to {decoder.arch.layers}", where=str(layers_trained))
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in decoder.model.layers[-layers_trained:]:
        assert isinstance(layer, Layer)
        for parent in (layer.self_attn, layer.mlp):
            for name, frozen in list(parent.named_children()):
                if name in config.targets and isinstance(frozen, nn.Linear):
                    adapted = LoraLinear(frozen, config.rank, config.alpha)
                    adapted.initialise(generator)
                    setattr(parent, name, adapted)
    return decoder


def lora_tensors(decoder: Decoder) -> dict[str, FloatArray]:
    """The adapters' tensors under PEFT's names."""
    return {
        f"base_model.model.{name}": p.detach().numpy().copy()
        for name, p in decoder.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


class without_lora:
    """Inside the block the decoder answers as if it had no adapters: the reference model of DPO and RL for free."""

    def __init__(self, decoder: Decoder) -> None:
        self._adapters = [m for m in decoder.modules() if isinstance(m, LoraLinear)]

    def __enter__(self) -> None:
        self._scales = [a.scale for a in self._adapters]
        for adapter in self._adapters:
            adapter.scale = 0.0

    def __exit__(self, *_: object) -> None:
        for adapter, scale in zip(self._adapters, self._scales, strict=True):
            adapter.scale = scale
