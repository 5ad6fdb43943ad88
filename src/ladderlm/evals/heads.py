"""What an attention head does, in figures: how much it looks at the first token, the one before, itself, or at what
followed an earlier occurrence of the same token (induction; Olsson et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladderlm.types import FloatArray, Value

KINDS = ("first", "previous", "itself", "induction", "earlier")
MEANING = (
    "Mean share of what a head takes, over the tokens of the prompt. first: from the first token; previous: from the "
    "token before; itself: from the token; earlier: from all the rest; induction: from what followed an earlier "
    "occurrence of the same token, over tokens that occurred before."
)


@dataclass(frozen=True, slots=True)
class Head(Value):
    """Mean shares over the tokens, the first left out. `induction` is over tokens that occurred before, None without
    any; `entropy` in nats says how widely the head looks."""

    layer: int
    head: int
    first: float
    previous: float
    itself: float
    earlier: float
    entropy: float
    induction: float | None = None

    @property
    def said(self) -> str:
        """Its figures in a line, the largest first."""
        named = {k: getattr(self, k) for k in KINDS if k != "induction"}
        parts = [f"{k} {v:.0%}" for k, v in sorted(named.items(), key=lambda item: -item[1]) if v >= 0.005]
        return ", ".join(parts) + ("" if self.induction is None else f" (induction {self.induction:.0%})")


def describe(shares_TT: FloatArray, ids: Sequence[int], layer: int, head: int) -> Head:
    """The figures of one head on one text."""
    count = len(ids)
    rows = np.arange(1, count) if count > 1 else np.arange(1)
    first = float(shares_TT[rows, 0].mean())
    itself = float(shares_TT[rows, rows].mean()) if count > 1 else 0.0
    later = rows[rows > 1]  # for the second token, the one before is the first
    previous = float(shares_TT[later, later - 1].sum() / max(len(rows), 1))
    entropy = float(-(shares_TT[rows] * np.log(np.maximum(shares_TT[rows], 1e-12))).sum(-1).mean())
    repeated = []
    for i in rows.tolist():
        followers = [j + 1 for j in range(i) if ids[j] == ids[i] and j + 1 < i]
        if followers:
            repeated.append(float(shares_TT[i, followers].sum()))
    induction = float(np.mean(repeated)) if repeated else None
    earlier = max(0.0, 1 - first - itself - previous)
    return Head(layer, head, first, previous, itself, earlier, entropy, induction)


def striking(heads: Sequence[Head], each: int = 3) -> list[tuple[str, str, float]]:
    """(kind, head, share): for each kind the heads that do most of it."""
    found = []
    for kind in KINDS:
        some = [h for h in heads if getattr(h, kind) is not None]
        for h in sorted(some, key=lambda h: -getattr(h, kind))[:each]:
            found.append((kind, f"{h.layer}.{h.head}", float(getattr(h, kind))))
    return found


def worth_showing(heads: Sequence[Head]) -> list[Head]:
    """The head itself where there is but one; else the one that does most of each kind, "first" left out."""
    if len(heads) == 1:
        return list(heads)
    found = []
    for kind in KINDS[1:]:
        some = [h for h in heads if getattr(h, kind) is not None]
        if some and (best := max(some, key=lambda h: getattr(h, kind))) not in found:
            found.append(best)
    return found
