"""What hosted tokens cost, as far as the user has told: [prices] in the workspace's config.toml.

    [prices."some-model"]
    input = 0.15    # per million tokens
    output = 0.60

No price list is shipped: prices change, and a stale one is worse than none.
"""

from __future__ import annotations

import threading

from ladderlm import config
from ladderlm.errors import LadderError, UsageError


class OverBudget(LadderError, RuntimeError):
    """The next request could cost more than the user allows."""


def price(model: str, read: int, written: int) -> float | None:
    """Cost of `read` prompt tokens and `written` answer tokens in the table's currency; None for unknown models."""
    path = config.user_file()
    entry = config.read_toml(path).get("prices", {}).get(model) if path.exists() else None
    if entry is None:
        return None
    try:
        return (read * float(entry["input"]) + written * float(entry["output"])) / 1e6
    except (KeyError, TypeError, ValueError):
        raise UsageError("a price needs input and output per million tokens", where=f"{path}: {model}") from None


class Budget:
    """What may be spent in all. Requests claim the most they can cost first, and settle what they did: never over.

    Threads that share a budget wait for each other's claims rather than fail because of them.
    """

    def __init__(self, limit: float, model: str) -> None:
        read, written = price(model, 1, 0), price(model, 0, 1)
        if read is None or written is None:
            cure = f'add [prices."{model}"] with input and output to {config.user_file()}'
            raise UsageError(f"no price is known for {model!r}, so its cost cannot be limited", cure=cure)
        self._limit, self._read, self._written = limit, read, written
        self._spent, self._claimed = 0.0, 0.0
        self._settled = threading.Condition()

    def claim(self, read: int, wanted: int | None, choices: int = 1) -> tuple[float, int | None]:
        """What was set aside, and how many tokens each choice may write (at most `wanted`).

        `read` is an upper bound of the prompt's tokens. Raises OverBudget when not even one token can be paid.
        """
        fixed, each = read * self._read, choices * self._written
        least = fixed + each * (1 if wanted is None else wanted)
        with self._settled:
            self._settled.wait_for(lambda: not self._claimed or self._left >= least)
            if self._left < fixed + each:
                what = f"the next request could cost more than the {self._left:.6g} left of {self._limit:.6g}"
                raise OverBudget(what, cure="raise --max-cost")
            allowed = wanted
            if each:
                afford = int((self._left - fixed) / each)
                allowed = afford if wanted is None else min(wanted, afford)
            cost = fixed + each * (allowed or 0)
            self._claimed += cost
        return cost, allowed

    def settle(self, claimed: float, cost: float) -> None:
        """Replaces a claim by what the request did cost."""
        with self._settled:
            self._claimed -= claimed
            self._spent += cost
            self._settled.notify_all()

    @property
    def _left(self) -> float:
        return self._limit - self._spent - self._claimed
