"""Did it help? One sentence from a paired interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ladderlm.evals.intervals import Interval, bootstrap_ratio
from ladderlm.types import Value


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
    """
    sizes = [1.0] * len(before) if per is None else per
    difference = bootstrap_ratio([b - a for a, b in zip(before, after, strict=True)], sizes, seed)
    up, down = difference.low > 0, difference.high < 0
    better, worse = (up, down) if higher_is_better else (down, up)
    verdict: Literal["helped", "no evidence", "harmed"] = "helped" if better else "harmed" if worse else "no evidence"
    sides = [bootstrap_ratio(side, sizes, seed) for side in (before, after)]
    return Helped(metric, sides[0], sides[1], difference, verdict, len(before))
