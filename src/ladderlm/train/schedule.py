"""What changes from step to step: the learning rate and the size of a batch. Pure functions of the step."""

from __future__ import annotations

import math

from ladderlm.train.settings import LoopConfig


def learning_rate_scale(step: int, total: int | None, config: LoopConfig) -> float:
    """The share of the full learning rate at `step` of `total`; None: not known yet, so it does not fall yet.

    "wsd" (warmup, stable, decay) holds until the last `cooldown` share of the steps, then falls in a line to zero;
    "cosine" (Loshchilov & Hutter 2017) falls all the way from the warmup's end to a tenth.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if not total:
        return rise
    if config.schedule == "cosine":
        gone = min(1.0, max(0, step - config.warmup) / max(1, total - config.warmup))
        return rise * (0.55 + 0.45 * math.cos(math.pi * gone))
    falling = config.cooldown * total
    return rise * min(1.0, (total - step) / falling) if falling else rise


def falls(step: int, total: int | None, config: LoopConfig) -> bool:
    """Whether the learning rate at `step` depends on where the end is: from then on `total` must not change."""
    if total is None:
        return False
    return step >= total or config.schedule == "cosine" or step > total - config.cooldown * total


def batches_in(position: int, config: LoopConfig, ranks: int = 1) -> int:
    """How many batches make the step at `position` of the data: `accumulate`, or fewer while the batch grows.

    With several `ranks` always a multiple of them, so that each gets as many.
    """
    if position >= config.batch_ramp:
        return config.accumulate
    wanted = math.ceil(config.accumulate * (position + 1) / config.batch_ramp)
    return min(config.accumulate, math.ceil(wanted / ranks) * ranks)


def batches_before(position: int, config: LoopConfig, ranks: int = 1) -> int:
    """The number of the first batch of the step at `position`."""
    ramped = min(position, config.batch_ramp)
    return sum(batches_in(p, config, ranks) for p in range(ramped)) + (position - ramped) * config.accumulate
