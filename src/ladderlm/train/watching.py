"""The held-out loss while a run tunes: a curve beside the training's, and the weights of its lowest point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ladderlm.errors import UsageError
from ladderlm.nn.loss import moved
from ladderlm.train.examples import grouped
from ladderlm.train.loop import NOTHING, Watch
from ladderlm.train.settings import AlignConfig, FinetuneConfig

Loss = Callable[[Any, Any], tuple[Tensor, dict[str, float]]]


def check_best(config: FinetuneConfig | AlignConfig) -> None:
    """Raises UsageError where the best is wanted of measurements that are not made."""
    if config.best and not config.evaluate_every:
        raise UsageError("the best of which measurements?", where="best", cure="--evaluate-every STEPS")


def watch(
    config: FinetuneConfig | AlignConfig, model: Any, loss: Loss, held: Sequence[Any], batch: Callable[[list[Any]], Any]
) -> Watch:  # fmt: skip
    """Measures `loss` every `config.evaluate_every` steps over `held`, batched; nothing where that is 0."""
    if not config.evaluate_every:
        return NOTHING
    groups = grouped([example.tokens for example in held], config.batch_tokens)
    batches = [batch([held[i] for i in group]) for group in groups]
    return Watch(evaluate=lambda: {"held_out_loss": mean_loss(model, loss, batches, config.device)})


@torch.no_grad()
def mean_loss(model: Any, loss: Loss, batches: Sequence[Any], device: str = "cpu") -> float:
    """The mean over all of `batches`, each by its weight."""
    model.eval()
    found = [(loss(model, moved(batch, device))[0].item(), batch.weight) for batch in batches]
    return sum(value * weight for value, weight in found) / sum(weight for _, weight in found)
