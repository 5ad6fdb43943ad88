"""A model as judge of two answers, and how far its word can be trusted.

Each pair is shown in both orders: judges like the first answer, or the second, for its place (Zheng et al. 2023,
arXiv:2306.05685). What changes with the order is a tie. With principles the judge is asked by each in turn (Bai et al.
2022, arXiv:2212.08073).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound, UsageError
from ladderlm.evals.ask import Asker
from ladderlm.types import Conversation, Message, Value

SYSTEM = "You compare two answers to the same question. You answer with the letter of the better one, A or B."
ASK = """Question:
{prompt}

Answer A:
{first}

Answer B:
{second}

{principle}
Which answer is better? Say A or B."""


@dataclass(frozen=True, slots=True)
class Judged(Value):
    """`winner`: 0, 1, or None for a tie. `consistent`: both orders gave the same winner. `lean`: how far the judge
    leans to what stands first, from -1 to 1."""

    winner: int | None
    consistent: bool
    lean: float


class Judge:
    """Asks a model for the better of two answers."""

    def __init__(self, ref: str, principles: Sequence[str] = (), *, max_cost: float | None = None) -> None:
        self._asker = Asker(ref, max_cost=max_cost, tokens=8)
        self._turns = itertools.cycle(tuple(principles) or ("",))
        self._tells = True

    @property
    def cost(self) -> float:
        return self._asker.cost

    def close(self) -> None:
        self._asker.close()

    def compare(self, prompt: str, one: str, two: str) -> Judged:
        """The better of two answers, asked in both orders under one principle."""
        principle = next(self._turns)
        forth = self._first_share(prompt, one, two, principle)
        back = self._first_share(prompt, two, one, principle)
        lean = forth + back - 1
        if (forth > 0.5) == (back < 0.5) and forth != 0.5 and back != 0.5:
            return Judged(0 if forth > 0.5 else 1, True, lean)
        return Judged(None, False, lean)

    def _first_share(self, prompt: str, first: str, second: str, principle: str) -> float:
        """How sure the judge is that the first is better, 0 to 1; 0.5 where it says neither A nor B."""
        rule = f"Judge by this principle: {principle}\n" if principle else ""
        text = ASK.format(prompt=prompt, first=first, second=second, principle=rule)
        turns = Conversation((Message.of("system", SYSTEM), Message.of("user", text)))
        if self._tells:
            try:
                a, b = self._asker.rank(turns, ("A", "B"))
                return 1 / (1 + math.exp(min(700.0, b - a)))
            except (NotFound, UsageError):
                self._tells = False  # no probabilities: it writes
        said = self._asker.write(turns).strip(" *\"'(").upper()
        return 1.0 if said.startswith("A") else 0.0 if said.startswith("B") else 0.5


def read_principles(path: str) -> list[str]:
    """One principle a line; blank lines and lines that begin with # are left out."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the principles: {error.strerror}", where=path) from None
    found = [line.strip().lstrip("-* ") for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise UsageError("no principle in the file", where=path, cure="one a line")
    return found


def kappa(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960); 1 where both always say one thing, nan for nothing."""
    if not pairs:
        return math.nan
    n = len(pairs)
    values = {value for pair in pairs for value in pair}
    seen = sum(a == b for a, b in pairs) / n
    chance = sum(sum(a == v for a, _ in pairs) * sum(b == v for _, b in pairs) for v in values) / n**2
    return 1.0 if chance == 1 else (seen - chance) / (1 - chance)


def alpha(units: Sequence[Sequence[Any]]) -> float:
    """Krippendorff's alpha for names (2004): agreement of any number of raters, some of whom left some units out."""
    units = [unit for unit in units if len(unit) > 1]
    total = sum(map(len, units))
    if not total:
        return math.nan
    counts: dict[Any, int] = {}
    apart = 0.0
    for unit in units:
        own: dict[Any, int] = {}
        for value in unit:
            own[value] = own.get(value, 0) + 1
            counts[value] = counts.get(value, 0) + 1
        apart += (len(unit) ** 2 - sum(c * c for c in own.values())) / (len(unit) - 1)
    expected = (total**2 - sum(c * c for c in counts.values())) / (total - 1)
    return 1.0 if expected == 0 else 1 - apart / expected
