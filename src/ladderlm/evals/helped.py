"""Did it help? One sentence from a paired interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ladderlm.evals.intervals import Interval, bootstrap
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

    def __str__(self) -> str:
        d, ends = self.difference, f"(95 % interval, {self.items} held-out items)"
        change = f"{self.metric} went from {self.before.mean:.3f} to {self.after.mean:.3f}, "
        change += f"a change of {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {ends}"
        if self.verdict == "no evidence":
            return f"There is no evidence that it helped: {change}."
        return f"It {self.verdict}: {change}."


def did_it_help(
    metric: str, before: Sequence[float], after: Sequence[float], *, higher_is_better: bool = True, seed: int = 0
) -> Helped:
    """Compares the per-item scores of two models on the same items, in the same order."""
    difference = bootstrap(before, after, seed)
    up, down = difference.low > 0, difference.high < 0
    better, worse = (up, down) if higher_is_better else (down, up)
    verdict: Literal["helped", "no evidence", "harmed"] = "helped" if better else "harmed" if worse else "no evidence"
    return Helped(metric, bootstrap(before, seed=seed), bootstrap(after, seed=seed), difference, verdict, len(before))
