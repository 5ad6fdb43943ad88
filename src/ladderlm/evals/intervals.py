"""How sure a mean is: percentile bootstrap intervals, alone and of paired differences (Efron & Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladderlm.errors import UsageError
from ladderlm.types import Value

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval(Value):
    """A mean and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def percent(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap(
    values: Sequence[float], paired: Sequence[float] | None = None, seed: int = 0, rounds: int = 2000
) -> Interval:
    """The mean of `values`, or of `paired - values` item by item (before, after), with its 95 % interval."""
    x = np.asarray(values, dtype=np.float64)
    if paired is not None:
        if len(paired) != len(values):
            raise UsageError("paired values must be as many", where=f"{len(values)} and {len(paired)}")
        x = np.asarray(paired, dtype=np.float64) - x
    return _interval(x, np.ones_like(x), seed, rounds)


def bootstrap_ratio(over: Sequence[float], under: Sequence[float], seed: int = 0, rounds: int = 2000) -> Interval:
    """sum(over) / sum(under), such as bits per byte, with its 95 % interval when items are drawn anew."""
    if len(over) != len(under):
        raise UsageError("both sides of a ratio must be as many", where=f"{len(over)} and {len(under)}")
    return _interval(np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64), seed, rounds)


def _interval(over: np.ndarray, under: np.ndarray, seed: int, rounds: int) -> Interval:
    if not len(over):
        raise UsageError("an interval of no values")
    rng = np.random.default_rng(seed)
    means = np.empty(rounds)
    step = max(1, 2_000_000 // len(over))  # bounds the memory of the drawn indices
    for start in range(0, rounds, step):
        drawn = rng.integers(0, len(over), (min(step, rounds - start), len(over)))
        means[start : start + step] = over[drawn].sum(1) / under[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(over.sum() / under.sum()), float(low), float(high))
