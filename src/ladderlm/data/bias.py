"""How often a dataset speaks of groups of people, and what it tells of them: counts with intervals, not a verdict.

A mention is a word or phrase of a group's list; an attribute is told of a group when both stand within WINDOW words. A
record counts once for each pair of attribute and group, because words of one text are not independent; the intervals
are Wilson's (1927) over records. Within an axis the share of a group is compared with its share of all mentions.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ladderlm.data.groups import Terms
from ladderlm.data.rewrite import texts
from ladderlm.types import Record

WINDOW = 10  # words on either side
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
LEAST_RECORDS = 20  # fewer say nothing, and many pairs are looked at
_Z = 1.959964  # 95 %

Pair = tuple[str, str]  # (axis, group)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share; (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    p, z2 = hits / total, _Z * _Z
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Counts:
    """What was counted in records."""

    records: int = 0
    words: int = 0
    mentions: Counter[Pair] = field(default_factory=Counter)
    records_with: Counter[Pair] = field(default_factory=Counter)
    told: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (axis, group, attribute) -> records


class Finder:
    """Finds the words and phrases of the lists in a text."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        # first word -> [(the words after it, what they mean)]
        self._phrases: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = defaultdict(list)
        for axis, groups in terms.groups.items():
            for group, words in groups.items():
                self._add(words, (axis, group))
        for attribute, words in terms.attributes.items():
            self._add(words, (attribute,))

    def _add(self, phrases: Iterable[str], meaning: tuple[str, ...]) -> None:
        for phrase in phrases:
            first, *rest = _WORD.findall(phrase.lower())
            self._phrases[first].append((tuple(rest), meaning))

    def places(self, text: str) -> tuple[int, dict[tuple[str, ...], list[int]]]:
        """(words, meaning -> places): a meaning is (axis, group) or (attribute,), a place the number of a word."""
        words = _WORD.findall(text.lower())
        found: dict[tuple[str, ...], list[int]] = defaultdict(list)
        known = self._phrases
        for at, word in enumerate(words):
            if word in known:
                for rest, meaning in known[word]:
                    if not rest or tuple(words[at + 1 : at + 1 + len(rest)]) == rest:
                        found[meaning].append(at)
        return len(words), found

    def mentions(self, record: Record) -> Counter[Pair]:
        """How often a record speaks of each group."""
        counts: Counter[Pair] = Counter()
        for text in texts(record):
            for meaning, places in self.places(text)[1].items():
                if len(meaning) == 2:
                    counts[meaning[0], meaning[1]] += len(places)
        return counts

    def count(self, records: Iterable[Record]) -> Counts:
        """One pass; memory does not grow with the records."""
        counts = Counts()
        for record in records:
            self.add(counts, record)
        return counts

    def add(self, counts: Counts, record: Record) -> None:
        """Counts one record more."""
        counts.records += 1
        seen: set[Pair] = set()
        told: set[tuple[str, str, str]] = set()
        for text in texts(record):
            words, found = self.places(text)
            counts.words += words
            groups = {(m[0], m[1]): p for m, p in found.items() if len(m) == 2}
            for pair, places in groups.items():
                counts.mentions[pair] += len(places)
                seen.add(pair)
            told.update(_told(groups, {m[0]: p for m, p in found.items() if len(m) == 1}))
        counts.records_with.update(seen)
        counts.told.update(told)


def _told(groups: Mapping[Pair, list[int]], attributes: Mapping[str, list[int]]) -> Iterator[tuple[str, str, str]]:
    for (axis, group), mentioned in groups.items():
        for attribute, places in attributes.items():
            if any(bisect_left(mentioned, at - WINDOW) < bisect_right(mentioned, at + WINDOW) for at in places):
                yield axis, group, attribute


def bias_report(counts: Counts, terms: Terms) -> dict[str, Any]:
    """axis -> mentions of each group (per million words, share, records with their interval), and for each attribute
    the groups' shares of the records that tell it of some group; `skewed` where the interval excludes the group's
    share of all records with a mention."""
    axes: dict[str, Any] = {}
    for axis, groups in terms.groups.items():
        total = sum(counts.mentions[axis, g] for g in groups)
        if not total:
            continue
        spoken = sum(counts.records_with[axis, g] for g in groups)
        base = {g: counts.records_with[axis, g] / spoken for g in groups}
        axes[axis] = {
            "groups": {g: _frequency(counts, axis, g, total) for g in groups},
            "imbalance": _imbalance([counts.mentions[axis, g] for g in groups]),
            "attributes": {a: shares for a in terms.attributes if (shares := _shares(counts, axis, base, a))},
        }
    return {"records": counts.records, "words": counts.words, "window": WINDOW, "axes": axes}


def _frequency(counts: Counts, axis: str, group: str, total: int) -> dict[str, Any]:
    mentions, records = counts.mentions[axis, group], counts.records_with[axis, group]
    return {
        "mentions": mentions,
        "per_million_words": round(1e6 * mentions / max(1, counts.words), 1),
        "share": round(mentions / total, 4),
        "records": records,
        "records_interval": [round(x, 4) for x in wilson(records, counts.records)],
    }


def _imbalance(mentions: list[int]) -> float:
    """0: all groups are spoken of equally often; 1: only one of them (one minus the entropy's share of its most)."""
    total = sum(mentions)
    if len(mentions) < 2 or not total:
        return 0.0
    entropy = -sum(n / total * math.log(n / total) for n in mentions if n)
    return round(1 - entropy / math.log(len(mentions)), 4)


def _shares(counts: Counts, axis: str, base: Mapping[str, float], attribute: str) -> dict[str, Any]:
    total = sum(counts.told[axis, g, attribute] for g in base)
    shares = {}
    for group, expected in base.items():
        hits = counts.told[axis, group, attribute]
        low, high = wilson(hits, total)
        if total:
            outside = total >= LEAST_RECORDS and not low <= expected <= high
            shares[group] = {
                "records": hits, "share": round(hits / total, 4), "expected": round(expected, 4),
                "interval": [round(low, 4), round(high, 4)], "skewed": outside,
            }  # fmt: skip
    return shares
