"""Low-rank adapters (Hu et al. 2021): y = W x + scale B A x with W frozen, A and B trained.

scale = alpha / rank, or alpha / sqrt(rank), which keeps high ranks from learning ever more slowly (rsLoRA,
Kalajdzievski 2023). DoRA (Liu et al. 2024) brings each row of W + scale B A to a trained length m: y = m / |W + scale
B A| times that, the norm being taken for a constant on the way back. W may be held in 4 bits (QLoRA, Dettmers et al.
2023).

(IA)3 (Liu et al. 2022) trains a factor for each number that leaves the keys' and values' matrices, and for each that
enters the last one of the feed-forward part.

Tensors leave under the names that PEFT gives them, so that its adapter folders and ours are one format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ladderlm.errors import UsageError, nearest
from ladderlm.nn.four_bits import Linear4
from ladderlm.nn.linear import Linear
from ladderlm.nn.tuned import Model, TunedLinear, layers_of
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.adapter_config import Ia3Config, LoraConfig

M = TypeVar("M", bound=Model)
_TRAINED = (".lora_A.", ".lora_B.", ".lora_magnitude_vector", ".ia3_l")


class LoraLinear(TunedLinear):
    """An update of rank R. Starts as the frozen linear: B is zero."""

    squared_O: Tensor

    def __init__(self, base: nn.Linear | Linear4, config: LoraConfig) -> None:
        super().__init__(base)
        self.scale = config.scale
        self.lora_A = Linear(base.in_features, config.rank)
        self.lora_B = Linear(config.rank, base.out_features)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(base.out_features)) if config.dora else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(self.lora_A.in_features)
        self.lora_A.weight.uniform_(-bound, bound, generator=generator)
        self.lora_B.weight.zero_()
        if self.lora_magnitude_vector is not None:
            length_O = torch.linalg.vector_norm(self.dense(), dim=1)
            self.register_buffer("squared_O", length_O.square(), persistent=False)
            self.lora_magnitude_vector.copy_(length_O)

    def forward(self, x_TI: Tensor) -> Tensor:
        if self.off:
            return self.plain(x_TI)
        y_TO = self.plain(x_TI) if self.lora_magnitude_vector is None else self.product(x_TI)
        y_TO = torch.addmm(y_TO, self.lora_A(x_TI), self.lora_B.weight.t(), alpha=self.scale)
        if self.lora_magnitude_vector is None:
            return y_TO
        y_TO = y_TO * (self.lora_magnitude_vector / self._lengths())
        return y_TO if (bias_O := self.bias_O()) is None else y_TO + bias_O

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """|W + scale B A| of each row, from |W|^2, W A^T and A A^T: the sum itself need not be made."""
        a_RI, b_OR = self.lora_A.weight, self.lora_B.weight
        with torch.autocast(a_RI.device.type, enabled=False):  # squares of rounded numbers would not add up
            mixed_OR = 2 * (self.dense() @ a_RI.t()) + self.scale * (b_OR @ (a_RI @ a_RI.t()))
            squared_O = self.squared_O + self.scale * (mixed_OR * b_OR).sum(1)
            return squared_O.clamp(min=1e-30).sqrt()

    def merged(self) -> tuple[Tensor, Tensor | None]:
        weight_OI = torch.addmm(self.dense(), self.lora_B.weight, self.lora_A.weight, alpha=self.scale)
        if self.lora_magnitude_vector is not None:
            weight_OI = weight_OI * (self.lora_magnitude_vector / weight_OI.norm(dim=1))[:, None]
        return weight_OI, self.bias_O()


class Ia3Linear(TunedLinear):
    """Factors, one at first: of what goes in (`inner`), else of what comes out, the bias included."""

    def __init__(self, base: nn.Linear | Linear4, *, inner: bool) -> None:
        super().__init__(base)
        self.inner = inner
        self.ia3_l = nn.Parameter(torch.ones((1, base.in_features) if inner else (base.out_features, 1)))

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.ia3_l)

    def forward(self, x_TI: Tensor) -> Tensor:
        if self.off:
            return self.plain(x_TI)
        return self.plain(x_TI * self.ia3_l[0]) if self.inner else self.plain(x_TI) * self.ia3_l[:, 0]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        bias_O = self.bias_O()
        scaled = bias_O is not None and not self.inner
        return self.dense() * self.ia3_l, bias_O * self.ia3_l[:, 0] if scaled and bias_O is not None else bias_O


def add_lora(model: M, config: LoraConfig, *, seed: int = 0, layers_trained: int = 0) -> M:
    """Freezes `model` and gives the linears named in `config.targets` an adapter, in place.

    `layers_trained` > 0: only in that many last layers; the backward pass then stops below them.
    Raises UsageError for a target that no layer has.
    """
    return _replace(model, config.targets, lambda name, base: LoraLinear(base, config), seed, layers_trained)


def add_ia3(model: M, config: Ia3Config, *, layers_trained: int = 0) -> M:
    """The same with factors."""
    return _replace(
        model, config.targets, lambda name, base: Ia3Linear(base, inner=name == "down_proj"), 0, layers_trained
    )


def _replace(
    model: M, targets: Sequence[str], make: Callable[[str, nn.Linear | Linear4], TunedLinear], seed: int, last: int
) -> M:
    layers = layers_of(model)
    linears = {
        n.rsplit(".", 1)[-1] for layer in layers for n, m in layer.named_modules() if isinstance(m, nn.Linear | Linear4)
    }
    for target in targets:
        if target not in linears and not (target == "gate_proj" and "up_proj" in linears):  # some have no gate
            raise UsageError(f"no linear named {target!r}", where="targets", cure=nearest(target, linears))
    if not 0 <= last <= len(layers):
        raise UsageError(f"layers_trained must be 0 to {len(layers)}", where=str(last))
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers[-last:]:
        for parent in (layer.self_attn, getattr(layer, "cross_attn", None), layer.mlp):
            for name, frozen in list(parent.named_children()) if parent is not None else ():
                if name in targets and isinstance(frozen, nn.Linear | Linear4):
                    tuned = make(name, frozen)
                    tuned.initialise(generator)
                    setattr(parent, name, tuned)
    return model


def adapter_tensors(model: nn.Module) -> dict[str, FloatArray]:
    """What is trained in all TunedLinears, under PEFT's names; copies."""
    return {
        f"base_model.model.{name}": p.detach().cpu().numpy().copy()
        for name, p in model.named_parameters()
        if any(part in name for part in _TRAINED)
    }
