"""Training text that repeats a benchmark: found by shared word n-grams, and dropped or cut.

After appendix C of "Language Models are Few-Shot Learners" (GPT-3, 2020): n-grams of lower-case words without
punctuation, n = 13; an item shorter than that counts as one n-gram of its own length, down to 8 words; shorter items
are too common to say anything and are only counted. Memory holds the benchmarks' n-grams, never the corpus.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ladderlm.data.rewrite import texts
from ladderlm.data.stages import Dropped, Stage, open_bytes, unpacked_name
from ladderlm.errors import FormatError, UsageError
from ladderlm.types import Record

Ids = npt.NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)
_BEGIN_SHIFT = np.uint64(40)
LEAST_WORDS = 8
MARGIN = 200  # characters cut on either side of what is repeated, and the least that a remaining piece must have
MOST_PIECES = 10


# --- Benchmarks ---------------------------------------------------------------------------------------------------


def items(path: str | Path) -> list[list[str]]:
    """The items of a benchmark file, each as its texts: JSON lines, JSON, CSV, TSV, or a text by lines; .gz, .zst, .xz.

    Any layout will do: the texts of an item are all strings in it, and all of them joined.
    """
    path = Path(path)
    with open_bytes(path) as file:
        text = file.read().decode("utf-8-sig", "replace")
    suffix = Path(unpacked_name(path.name)).suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows: list[Any] = list(csv.reader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ","))
    else:
        rows = _json_rows(text) if text.lstrip()[:1] in ("{", "[") else text.splitlines()
    found = [strings for row in rows if (strings := [s for s in _strings(row) if s.strip()])]
    if not found:
        raise FormatError("no text in the benchmark", where=str(path))
    return [[*row, " ".join(row)] if len(row) > 1 else row for row in found]


def _json_rows(text: str) -> list[Any]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return [_row(line) for line in text.splitlines() if line.strip()]
    while isinstance(whole, Mapping):  # {"examples": [...]}, {"data": {"test": [...]}}
        inner: Any = max(whole.values(), key=lambda v: len(v) if isinstance(v, (list, Mapping)) else 0, default=[])
        if not isinstance(inner, (list, Mapping)) or len(inner) < 2:
            return [whole]
        whole = inner
    return list(whole)


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("id", "source", "licence", "kind", "meta"):
                yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


class Benchmarks:
    """The n-grams of some benchmark files, and which of their items have been met."""

    def __init__(self, paths: Sequence[str | Path], n: int = 13) -> None:
        if n < LEAST_WORDS:
            raise UsageError(f"n must be at least {LEAST_WORDS}", where=f"n={n}", cure="shorter n-grams are everywhere")
        self.n = n
        self._words: dict[str, int] = {}
        # whether some n-gram begins with LEAST_WORDS words of such a hash: nearly all of a text ends here
        self._begins = np.zeros(1 << 24, np.bool_)
        self.names = [Path(p).name for p in paths]
        self._sizes, self._short = [0] * len(paths), [0] * len(paths)
        grams: dict[int, tuple[list[Ids], list[npt.NDArray[np.int64]]]] = {}
        self._owner: list[tuple[int, int]] = []  # item -> (file, its number there)
        for at, path in enumerate(paths):
            for number, item in enumerate(items(path)):
                self._sizes[at] += 1
                self._short[at] += not self._add(item, grams)
                self._owner.append((at, number))
        self._grams = {length: _sorted(*found) for length, found in sorted(grams.items())}
        self.hit: set[int] = set()

    def _add(self, item: Sequence[str], grams: dict[int, tuple[list[Ids], list[npt.NDArray[np.int64]]]]) -> bool:
        long_enough = False
        for text in item:
            words = _words(text)
            if len(words) < LEAST_WORDS:
                continue
            ids = np.array([self._words.setdefault(w, len(self._words) + 1) for w in words], np.uint64)
            length = min(self.n, len(words))
            hashes, owners = grams.setdefault(length, ([], []))
            hashes.extend(found for _, found, _ in _windows(ids, (length,)))
            for _, found, _ in _windows(ids, (LEAST_WORDS,)):
                self._begins[found >> _BEGIN_SHIFT] = True
            owners.append(np.full(len(hashes[-1]), len(self._owner)))
            long_enough = True
        return long_enough

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The places of `text` that repeat a benchmark, in order and joined where they touch; the items are marked."""
        known = self._words.get
        words = _words(text)
        ids = np.fromiter(map(known, words, repeat(0)), np.uint64, len(words))
        hit = np.zeros(len(ids) + 1, np.int64)
        for length, looked, starts in _windows(ids, tuple(self._grams), self._begins):
            hashes, owners = self._grams[length]
            left = np.searchsorted(hashes, looked)
            found = (left < len(hashes)) & (hashes[np.minimum(left, len(hashes) - 1)] == looked)
            if not found.any():
                continue
            right = np.searchsorted(hashes, looked[found], "right")
            for a, b in zip(left[found], right, strict=True):
                self.hit.update(owners[a:b].tolist())
            np.add.at(hit, starts[found], 1)
            np.add.at(hit, starts[found] + length, -1)
        covered = np.cumsum(hit[:-1]) > 0
        if not covered.any():
            return []
        places = [word.span() for word in _WORD.finditer(text)]
        edges = np.flatnonzero(np.diff(covered, prepend=False, append=False))
        return [(places[a][0], places[b - 1][1]) for a, b in edges.reshape(-1, 2)]

    def report(self) -> dict[str, Any]:
        """For each file: items, those too short to look for, those met in the text, their share and numbers."""
        met: dict[int, list[int]] = {at: [] for at in range(len(self.names))}
        for item in sorted(self.hit):
            at, number = self._owner[item]
            met[at].append(number)
        return {
            name: {"items": self._sizes[at], "too_short": self._short[at], "hit": len(met[at]),
                   "share": round(len(met[at]) / self._sizes[at], 4), "first_hit": met[at][:100]}
            for at, name in enumerate(self.names)
        }  # fmt: skip


def _sorted(hashes: list[Ids], owners: list[npt.NDArray[np.int64]]) -> tuple[Ids, npt.NDArray[np.int64]]:
    flat, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.argsort(flat, kind="stable")
    return flat[order], owner[order]


def _words(text: str) -> list[str]:
    lower = text.lower()
    # some capitals have a small form of two characters, whose second ends the word
    return _WORD.findall(lower) if len(lower) == len(text) else [word.lower() for word in _WORD.findall(text)]


def _windows(
    ids: Ids, lengths: Sequence[int], begins: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Ids, npt.NDArray[np.int64]]]:
    """(length, hashes_N, starts_N) of the windows all of whose words are known (not 0), for each of `lengths`, rising,
    without those whose first words `begins` does not hold.

    64 bits: that one of 10^9 windows meets one of 10^5 n-grams by chance has odds of one in 10^5.
    """
    unknown = np.concatenate([[0], np.cumsum(ids == 0)])
    shortest = min(lengths, default=0)
    if len(ids) < shortest or not lengths:
        return
    starts = np.flatnonzero(unknown[shortest:] == unknown[:-shortest])
    mixed = (ids ^ (ids >> np.uint64(7))) * _MIX
    mixed ^= mixed >> np.uint64(29)
    out = np.zeros(len(starts), np.uint64)
    for k in range(max(lengths)):
        if k >= shortest:  # the windows go on growing where the next word is known too
            on = (starts + k < len(ids)) & (ids[np.minimum(starts + k, len(ids) - 1)] != 0)
            starts, out = starts[on], out[on]
        if not len(starts):
            return
        out = out * np.uint64(0xBF58476D1CE4E5B9) + mixed[starts + k]
        out ^= out >> np.uint64(31)
        if k + 1 == LEAST_WORDS and begins is not None:
            on = begins[out >> _BEGIN_SHIFT]
            starts, out = starts[on], out[on]
        if k + 1 in lengths:
            yield k + 1, out, starts


# --- The stage ----------------------------------------------------------------------------------------------------


def decontaminate_stage(
    benchmarks: Benchmarks,
    action: Literal["drop", "cut"] = "drop",
    *,
    counts: Counter[str] | None = None,
    details: dict[str, Any] | None = None,
) -> Stage:
    """drop: records that repeat a benchmark are left out; cut: what repeats and MARGIN characters around it go.

    Cutting splits a text into pieces ("ID.1", ...; more than MOST_PIECES: dropped); records of other kinds are dropped.
    `details` gets the benchmarks' report when the records end.
    """
    counts = Counter() if counts is None else counts

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        for record in records:
            spans = [benchmarks.spans(text) for text in texts(record)]
            if not any(spans):
                yield record
            elif action == "drop" or record.kind != "text":
                yield Dropped(record, "contaminated")
            else:
                pieces = _cut(record["text"], spans[0])
                if not 1 <= len(pieces) <= MOST_PIECES:
                    yield Dropped(record, "contaminated")
                    continue
                counts["cut"] += 1
                for number, piece in enumerate(pieces, 1):
                    name = f"{record.id}.{number}" if len(pieces) > 1 else record.id
                    yield dataclasses.replace(record, id=name, fields={**record.fields, "text": piece})
        if details is not None:
            details.update(benchmarks=benchmarks.report())

    return stage


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    pieces, last = [], 0
    for start, end in spans:
        pieces.append(text[last : max(last, start - MARGIN)])
        last = min(len(text), end + MARGIN)
    pieces.append(text[last:])
    return [piece.strip() for piece in pieces if len(piece.strip()) >= MARGIN]
