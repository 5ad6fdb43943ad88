"""Muon for the matrices inside the layers, AdamW for all else, behind one small interface.

Muon (Jordan et al. 2024): the step is the momentum's nearest semi-orthogonal matrix, found by matrix products alone.
Its products are fp32 unless the hardware has bf16: without, a bf16 Newton-Schulz costs more than the rest of the step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ladderlm.errors import FormatError
from ladderlm.train.distributed import fill, local, part_like, share_like, whole_like
from ladderlm.train.settings import PretrainConfig

# Odd quintics a x + b x^3 + c x^5, each the minimax fit of 1 on what the ones before it leave of [0.001, 1], by our own
# Remez exchange after Amsel et al. 2025 (arXiv 2505.16932). Their product maps [0.001, 1] into [0.87, 1.13].
QUINTICS = (
    (8.287212, -23.595887, 17.300387),
    (4.107059, -2.947850, 0.544843),
    (3.948691, -2.908902, 0.551819),
    (3.318420, -2.488488, 0.510049),
    (2.300652, -1.668904, 0.418807),
)
MOMENTUM = 0.95
BETAS = (0.9, 0.95)


def orthogonalise(g_BMN: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T for every matrix U S V^T of the batch; singular values below a thousandth of the norm stay short.

    The products are made in `dtype`; the result is fp32. Above 1 the quintics grow steeply, where rounding must not
    lead: so all but the last are stretched by the `slack` that bf16 needs.
    """
    tall = g_BMN.shape[-2] > g_BMN.shape[-1]
    x = g_BMN.mT.contiguous() if tall else g_BMN
    slack = 1.001 if dtype == torch.float32 else 1.01
    x = (x / (slack * x.norm(dim=(-2, -1), keepdim=True) + 1e-12)).to(dtype)
    stretched = [(a / slack, b / slack**3, c / slack**5) for a, b, c in QUINTICS[:-1]]
    for a, b, c in (*(QUINTICS[:-1] if dtype == torch.float32 else stretched), QUINTICS[-1]):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon:
    """Nesterov momentum, orthogonalised; matrices of one shape go through in one batch.

    The step of an (M, N) matrix has root-mean-square size 0.2 lr, that of a typical AdamW step (Liu et al. 2025,
    arXiv 2502.16982), so that learning rates carry over. Weight decay is decoupled.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:  # fmt: skip
        self.lr, self.weight_decay, self.dtype = lr, weight_decay, dtype
        self.groups: dict[tuple[int, ...], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in named.items():
            self.groups[tuple(parameter.shape)][name] = parameter
        # What this process holds of the momenta; under FSDP2 a part of each.
        self.momenta = {
            shape: torch.stack([torch.zeros_like(local(p), requires_grad=False) for p in group.values()])
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for shape, group in self.groups.items():
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group.values()]
            grad_BMN = torch.stack([local(g) for g in grads])
            momentum_BMN = self.momenta[shape].lerp_(grad_BMN, 1 - MOMENTUM)
            nesterov = zip(group.values(), grad_BMN.lerp_(momentum_BMN, MOMENTUM), strict=True)
            update_BMN = orthogonalise(torch.stack([whole_like(p, part) for p, part in nesterov]), self.dtype)
            lr = self.lr * scale
            for parameter, update_MN in zip(group.values(), update_BMN, strict=True):
                parameter.mul_(1 - lr * self.weight_decay)
                parameter.add_(share_like(parameter, update_MN), alpha=-lr * 0.2 * math.sqrt(max(shape)))

    def state(self) -> dict[str, Tensor]:
        return {
            f"muon.{name}": part_like(parameter, self.momenta[shape][i])
            for shape, group in self.groups.items()
            for i, (name, parameter) in enumerate(group.items())
        }


class Optimiser:
    """Steps every trainable parameter: `muon_lr` for matrices inside layers (0: AdamW for them too), `lr` otherwise.

    `precision` "bf16": that of Muon's products, where the hardware has them.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], lr: float, *, muon_lr: float = 0.0, weight_decay: float = 0.0,
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.named = {name: p for name, p in named if p.requires_grad}
        by_muon = {n: p for n, p in self.named.items() if muon_lr > 0 and p.ndim == 2 and ".layers." in n}
        narrow = torch.bfloat16 if precision == "bf16" else torch.float32
        self.muon = Muon(by_muon, muon_lr, weight_decay, narrow)
        self._rest = {n: p for n, p in self.named.items() if n not in by_muon}
        decayed = [p for n, p in self._rest.items() if p.ndim == 2 and "embed" not in n]
        kept = [p for n, p in self._rest.items() if p.ndim != 2 or "embed" in n]
        self.lr = lr
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=BETAS, fused=True)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.named.values())

    def step(self, scale: float) -> None:
        """One step at `scale` times the learning rates, then the gradients are dropped."""
        self.muon.step(scale)
        for group in self._adamw.param_groups:
            group["lr"] = self.lr * scale
        self._adamw.step()
        for parameter in self.named.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name."""
        out = self.muon.state()
        for name, parameter in self._rest.items():
            for key, value in self._adamw.state[parameter].items():
                out[f"adamw.{name}.{key}"] = value
        return out

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises FormatError where a parameter's state is missing."""
        try:
            for name, tensor in self.muon.state().items():
                fill(tensor, state[name])
            self._adamw.state.clear()
            begun = any(name.startswith("adamw.") for name in state)  # before the first step there are no moments
            for name, parameter in self._rest.items() if begun else ():
                entry: dict[str, Any] = self._adamw.state[parameter]
                entry["step"] = state[f"adamw.{name}.step"].to(parameter.device)
                for key in ("exp_avg", "exp_avg_sq"):
                    entry[key] = torch.zeros_like(parameter, requires_grad=False)
                    fill(entry[key], state[f"adamw.{name}.{key}"])
        except KeyError as error:
            raise FormatError(f"the checkpoint lacks {error}", cure="it belongs to other settings") from None


def optimiser_of(model: nn.Module, config: PretrainConfig) -> Optimiser:
    """The optimiser that pretraining by `config` has, whose numbers have all been derived."""
    return Optimiser(
        model.named_parameters(), config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay,
        precision=config.precision,
    )  # fmt: skip
