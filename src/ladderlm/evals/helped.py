"""Did it help? One sentence from a paired interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ladderlm.errors import UsageError
from ladderlm.evals.intervals import Interval, bootstrap_ratio
from ladderlm.types import Value

LEVEL = 0.025  # of chance on either side
SIGNS = 4000  # drawings


@dataclass(frozen=True, slots=True)
class Scored(Value):
    """One figure of every held-out item: `values` of `items` (their names), divided by `sizes` where those are told."""

    metric: str
    items: tuple[str, ...]
    values: tuple[float, ...]
    sizes: tuple[float, ...] = ()
    higher_is_better: bool = True

    @property
    def per(self) -> Sequence[float]:
        return self.sizes or (1.0,) * len(self.items)


@dataclass(frozen=True, slots=True)
class Helped(Value):
    """Before, after, and their paired difference, item by item. `verdict` follows from the difference's interval."""

    metric: str
    before: Interval
    after: Interval
    difference: Interval
    verdict: Literal["helped", "no evidence", "harmed"]
    items: int

    @property
    def change(self) -> str:
        """The figures in words."""
        d, ends = self.difference, f"(95 % interval, {self.items} held-out items)"
        went = f"{self.metric} went from {self.before.mean:.3f} to {self.after.mean:.3f}, "
        return went + f"a change of {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {ends}"

    def __str__(self) -> str:
        if self.verdict == "no evidence":
            return f"There is no evidence that it helped: {self.change}."
        return f"It {self.verdict}: {self.change}."


def did_it_help(
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    higher_is_better: bool = True,
    seed: int = 0,
    per: Sequence[float] | None = None,
) -> Helped:
    """Compares the per-item scores of two models on the same items, in the same order.

    With `per` the scores are sums that are divided by its sum, as bits are by bytes. The same items are drawn for both.
    "helped" and "harmed" are said where the interval lies on one side of zero and random signs of the differences
    reach as far in at most 1 of 40 cases: with few items an interval alone is too bold.
    """
    sizes = [1.0] * len(before) if per is None else per
    difference = bootstrap_ratio([b - a for a, b in zip(before, after, strict=True)], sizes, seed)
    sure = by_chance([b - a for a, b in zip(before, after, strict=True)], seed) <= LEVEL
    up, down = difference.low > 0 and sure, difference.high < 0 and sure
    better, worse = (up, down) if higher_is_better else (down, up)
    verdict: Literal["helped", "no evidence", "harmed"] = "helped" if better else "harmed" if worse else "no evidence"
    sides = [bootstrap_ratio(side, sizes, seed) for side in (before, after)]
    return Helped(metric, sides[0], sides[1], difference, verdict, len(before))


def compare_scored(before: Scored, after: Scored, seed: int = 0) -> Helped:
    """The same figure of the same items, twice. UsageError where they are not the same."""
    if (before.metric, before.items) != (after.metric, after.items):
        raise UsageError(f"{before.metric} and {after.metric} of other items cannot be paired")
    return did_it_help(
        before.metric, before.values, after.values, higher_is_better=before.higher_is_better, seed=seed, per=before.per
    )


def balanced(items: Sequence[str], truth: Sequence[str], predicted: Sequence[str]) -> Scored:
    """Balanced accuracy, the mean over labels of the share that was found: to say one label always is worth 1/labels.

    Plain accuracy calls it help when a model learns nothing but which label is frequent.
    """
    counts = Counter(truth)
    sizes = [len(truth) / (len(counts) * counts[label]) for label in truth]
    right = [size * (t == p) for size, t, p in zip(sizes, truth, predicted, strict=True)]
    return Scored("balanced accuracy", tuple(items), tuple(right), tuple(sizes))


def by_chance(differences: Sequence[float], seed: int = 0) -> float:
    """How often the sum of differences, their signs drawn anew, reaches as far out to its side (Fisher 1935)."""
    moved = np.abs(np.array([d for d in differences if d], np.float64))
    total = abs(float(np.sum(differences)))
    if not len(moved):
        return 1.0
    if len(moved) <= 12:  # all of them
        bits = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        return float(np.mean((2.0 * bits - 1) @ moved >= total * (1 - 1e-12)))
    rng = np.random.default_rng(seed)
    sums = np.concatenate([(2.0 * rng.integers(0, 2, (100, len(moved))) - 1) @ moved for _ in range(SIGNS // 100)])
    return float((1 + np.sum(sums >= total * (1 - 1e-12))) / (1 + SIGNS))
