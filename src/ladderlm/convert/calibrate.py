"""Rounding a decoder's layers one after another, each on the inputs that the layers before, already rounded, give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ladderlm import events
from ladderlm.models.packed_ints import PackedMatrix
from ladderlm.nn.decoder import Decoder
from ladderlm.types import FloatArray

TOKENS_AT_A_TIME = 2048
Moments = np.ndarray
Rounder = Callable[[FloatArray, Moments], PackedMatrix]


class _Enough(Exception):
    """Ends a forward pass once what was wanted of it has been seen."""


class _Call:
    """The arguments of a layer for one batch; `x_TD` advances from layer to layer."""

    def __init__(self, x_TD: Tensor) -> None:
        self.x_TD = x_TD
        self.others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def run(self, layer: nn.Module, index: int) -> Tensor:
        args, kwargs = self.others[index]
        return layer(self.x_TD, *args, **kwargs)


@torch.no_grad()
def round_layers(decoder: Decoder, windows: Sequence[Sequence[int]], rounder: Rounder) -> dict[str, PackedMatrix]:
    """Rounds every linear of every layer in place; the packed matrices by name.

    `windows` are the calibration ids. Within a layer the order is that of the forward pass: what follows a rounded
    linear is calibrated on its outputs. Memory: the decoder, one hidden state per window, and a layer's moments.
    """
    decoder.eval()
    calls = _first_calls(decoder, windows)
    out: dict[str, PackedMatrix] = {}
    for index, layer in events.track(list(enumerate(decoder.model.layers)), "calibrate", unit="layers"):
        for linears in _by_input(layer, calls, index):
            weights_OI = np.concatenate([linear.weight.numpy() for _, linear in linears])
            whole, start = rounder(weights_OI, _moments(layer, linears[0][1], calls, index)), 0
            for name, linear in linears:
                packed = whole.take(slice(start, start + linear.out_features))
                linear.weight.copy_(torch.from_numpy(packed.array()))
                out[f"model.layers.{index}.{name}.weight"] = packed
                start += linear.out_features
        for call in calls:
            call.x_TD = call.run(layer, index)
    return out


def _first_calls(decoder: Decoder, windows: Sequence[Sequence[int]]) -> list[_Call]:
    """What each layer is called with, by running the decoder with layers that do nothing."""
    calls: list[_Call] = []
    layers = list(decoder.model.layers)

    def skipping(first: bool) -> Callable[..., Tensor]:
        def forward(x_TD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if first:
                calls.append(_Call(x_TD))
            calls[-1].others.append((args, kwargs))
            return x_TD

        return forward

    for i, layer in enumerate(layers):
        layer.forward = skipping(i == 0)
    try:
        for batch in _batches(windows):
            decoder(torch.tensor([i for window in batch for i in window]), [len(window) for window in batch])
    finally:
        for layer in layers:
            del layer.forward  # the class's own shows again
    return calls


def _batches(windows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for window in windows:
        if batch and sum(map(len, batch)) + len(window) > TOKENS_AT_A_TIME:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _by_input(layer: nn.Module, calls: Sequence[_Call], index: int) -> list[list[tuple[str, nn.Linear]]]:
    """The layer's projections in the order they run; those that read one input together.

    An expert that no calibration token goes to is not among them.
    """
    names = {
        module: name
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith("_proj")
    }
    groups: list[list[tuple[str, nn.Linear]]] = []
    last: Tensor | None = None

    def seen(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal last
        if module in waiting and isinstance(module, nn.Linear):
            waiting.remove(module)
            if last is not args[0]:
                last = args[0]
                groups.append([])
            groups[-1].append((names[module], module))

    waiting: set[nn.Module] = set(names)
    hooks = [module.register_forward_pre_hook(seen) for module in names]
    try:
        for call in calls:
            if waiting:
                call.run(layer, index)
    finally:
        for hook in hooks:
            hook.remove()
    return groups


def _moments(layer: nn.Module, linear: nn.Linear, calls: Sequence[_Call], index: int) -> Moments:
    """X^T X, in float64, of what `linear` reads over all calibration tokens."""
    total_II = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        x_TI = args[0].reshape(-1, linear.in_features)
        total_II.add_(x_TI.T @ x_TI)
        raise _Enough

    hook = linear.register_forward_pre_hook(add)
    try:
        for call in calls:
            try:
                call.run(layer, index)
            except _Enough:
                continue
    finally:
        hook.remove()
    return total_II.numpy()
