"""A measured skew made smaller: group words exchanged, a swapped copy added, or the side spoken of more made thinner.

swap    half of the records that speak of the groups, chosen by a hash, have their words exchanged: every context
        comes with either side equally often, and the dataset keeps its size
copy    a swapped copy ("ID.swapped") follows each such record: exactly even, at the price of more text
reweight  records that lean to the side spoken of more are left out by a hash, as many as even out the mentions
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from ladderlm.data.bias import Counts, Finder, bias_report
from ladderlm.data.groups import Terms
from ladderlm.data.rewrite import rewrite
from ladderlm.data.stages import Dropped, Stage, rereadable
from ladderlm.data.swap import Swapper
from ladderlm.errors import UsageError, nearest
from ladderlm.types import Record

Action = Literal["swap", "copy", "reweight"]


def balance_stage(
    terms: Terms,
    axis: str = "gender",
    action: Action = "swap",
    *,
    seed: int = 0,
    counts: Counter[str] | None = None,
    details: dict[str, Any] | None = None,
) -> Stage:
    """`details` gets the axis's bias report before and after. The records are read twice, by way of a temporary file
    where they cannot be. Raises UsageError for an axis not in the lists, or reweighting of more than two groups.
    """
    if axis not in terms.groups:
        raise UsageError(f"no axis {axis!r}", cure=nearest(axis, terms.groups))
    groups = tuple(terms.groups[axis])
    if action == "reweight" and len(groups) != 2:
        raise UsageError("reweighting needs an axis of two groups", where=f"{axis}: {', '.join(groups)}")
    only = Terms({axis: terms.groups[axis]}, terms.attributes, terms.pairs)
    finder, swapper = Finder(only), Swapper(terms.pairs)
    counts = Counter() if counts is None else counts

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        with rereadable(records) as again:
            before = bias_report(finder.count(again), only)
            chance = _chances(finder, again, axis, groups) if action == "reweight" else {}
            after = Counts()
            for record in again:
                for item in _worked(record, chance):
                    if isinstance(item, Record):
                        finder.add(after, item)
                    yield item
        if details is not None:
            details.update(before=before, after=bias_report(after, only))

    def _worked(record: Record, chance: dict[str, float]) -> Iterator[Record | Dropped]:
        if action == "reweight":
            side = _side(finder.mentions(record), axis, groups)
            yield Dropped(record, "balance") if _place(record.id, seed) < chance.get(side, 0) else record
            return
        swapped = rewrite(record, swapper.edits) if action == "copy" or _place(record.id, seed) < 0.5 else record
        if action == "copy" and swapped is not record:
            yield record
            swapped = dataclasses.replace(swapped, id=f"{record.id}.swapped")
        if swapped is not record:
            counts["swapped"] += 1
        yield swapped

    return stage


def _side(mentions: Counter[tuple[str, str]], axis: str, groups: tuple[str, ...]) -> str:
    """The group a record speaks of more, or ""."""
    first, second = (mentions[axis, g] for g in groups)
    return "" if first == second else groups[first < second]


def _chances(finder: Finder, records: Iterable[Record], axis: str, groups: tuple[str, ...]) -> dict[str, float]:
    """How likely a record that leans to a side is left out, so that the mentions come out even."""
    leans: Counter[str] = Counter()
    for record in records:
        mentions = finder.mentions(record)
        first, second = (mentions[axis, g] for g in groups)
        leans[_side(mentions, axis, groups)] += abs(first - second)
    more, less = sorted(groups, key=lambda g: -leans[g])
    return {more: (leans[more] - leans[less]) / leans[more]} if leans[more] else {}


def _place(key: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"balance:{seed}:{key}".encode()).digest()[:8], "big") / 2**64
