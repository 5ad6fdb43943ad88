"""An exponential moving average of the weights: often better than the last ones, and never trained itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ladderlm.errors import FormatError


class Average:
    """Follows `named` with the given `decay`, faster at first: after n steps at most (1 + n) / (10 + n)."""

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.values = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after `step` steps in."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.named.items():
            self.values[name].lerp_(parameter.detach(), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While the block runs the parameters hold the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def adopt(self) -> None:
        """The parameters become the average, for good."""
        for name, parameter in self.named.items():
            parameter.copy_(self.values[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        return {f"ema.{name}": value for name, value in self.values.items()}

    def place(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """The saved average of a parameter. FormatError when the checkpoint has none."""
        if f"ema.{name}" not in state:
            raise FormatError(f"the checkpoint lacks the average of {name}", cure="start a new run")
        return state[f"ema.{name}"]
