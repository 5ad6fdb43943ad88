"""A part held out of a stream: for scoring (whole records, by hash), or to measure a model by (pieces of texts)."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ladderlm.data.records import MANY_SOURCES, Plan, make_record, place, plan_split
from ladderlm.data.stages import Bad, Dropped, Stage, StageReport, run_stage, stream
from ladderlm.errors import UsageError
from ladderlm.types import Record

PIECE = 2_000  # characters; that a model is measured on many pieces makes an interval possible
LONG = 20_000  # characters; of texts as long as this the end is kept apart
_LEAST = 200  # characters of a tail worth cutting off
_CUT = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"\s"))


def run_split(
    path: str | Path,
    train: str | Path,
    test: str | Path,
    *,
    fraction: float,
    seed: int = 0,
    by: Literal["source", "id"] | None = None,
    bad: Bad | None = None,
) -> tuple[StageReport, StageReport]:
    """Splits a file in two files, each with its report; it is read three times, and never held.

    Which side a record is on follows from a hash. A line that is no record raises FormatError, unless `bad` is given.
    """
    if str(path) == "-":
        raise UsageError("a split is read more than once: stdin cannot be split", cure="write it to a file first")
    plan = plan_split(stream(path, bad), fraction, seed, by)
    return _sides("split", path, train, test, plan, {"fraction": fraction, "seed": seed, "by": plan.by})


def hold_out(
    path: str | Path,
    train: str | Path,
    held: str | Path,
    *,
    share: float,
    most: int,
    seed: int = 0,
    longest: int = 0,
) -> tuple[StageReport, StageReport]:
    """Keeps texts apart to measure a model by: pieces of about PIECE characters, `most` bytes of them at most.

    From ten sources on these are whole texts, chosen by the hash of their source; of fewer, the end of each LONG text
    and, where there are ten short ones, whole texts among them, by their ids. Not more is kept apart than twice what
    is used. With `longest` the texts to learn from are cut into pieces of about so many characters, so that a share of
    them is drawn from all. Raises UsageError when there is too little text.
    """
    if not 0 < share < 1 or most < 1:
        raise UsageError("a share in (0, 1) and at least a byte are held out", where=f"share={share}, most={most}")
    kept, settings = _choice(path, share, most, seed), {"share": share, "most": most, "seed": seed}
    cuts = {"longest": longest} if longest else {}
    reports = (
        run_stage("hold out", _beginnings(kept, longest), (path,), train, {**settings, **cuts, "side": "train"}),
        run_stage("hold out", _pieces(kept, most, seed), (path,), held, {**settings, "side": "held out"}),
    )
    if not reports[1].records_out:
        cure = "give more text, or a larger share"
        raise UsageError("too little text to keep some apart", where=str(path), cure=cure)
    return reports


# --- Whole records ------------------------------------------------------------------------------------------------


def _sides(
    name: str, path: str | Path, train: str | Path, test: str | Path, plan: Plan, settings: dict[str, Any]
) -> tuple[StageReport, StageReport]:
    def side(wanted: bool) -> Stage:
        def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
            for record in records:
                yield record if plan.held(record) == wanted else Dropped(record, "train" if wanted else "test")

        return stage

    return (
        run_stage(name, side(False), (path,), train, {**settings, "side": "train"}),
        run_stage(name, side(True), (path,), test, {**settings, "side": "test"}),
    )


# --- Texts --------------------------------------------------------------------------------------------------------


Kept = Callable[[Record], tuple[str, str]]  # (what is learnt of a record, what is kept apart)


def _choice(path: str | Path, share: float, most: int, seed: int) -> Kept:
    size = short = 0
    sources = set[str]()
    for record in stream(path):
        size += len(record["text"])
        short += len(record["text"]) < LONG
        if len(sources) < MANY_SOURCES:
            sources.add(record.source)
    fraction, many = min(share, 2 * most / max(size, 1)), len(sources) >= MANY_SOURCES
    plan = None
    if many:
        plan = plan_split(stream(path), fraction, seed, "source")
    elif short >= MANY_SOURCES:
        plan = plan_split((r for r in stream(path) if len(r["text"]) < LONG), fraction, seed, "id")

    def kept(record: Record) -> tuple[str, str]:
        text: str = record["text"]
        if plan is None or not (many or len(text) < LONG):
            return _tail(text, fraction)
        return ("", text) if plan.held(record) else (text, "")

    return kept


def _beginnings(kept: Kept, longest: int) -> Stage:
    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        for record in records:
            text = kept(record)[0]
            if not text:
                yield Dropped(record, "held-out")
            elif longest:
                yield from (_part(record, piece) for piece in cut(text, longest))
            else:
                yield record if text == record["text"] else _part(record, text)

    return stage


def _pieces(kept: Kept, most: int, seed: int) -> Stage:
    """Pieces of what is kept apart; where they are more than `most` bytes, those whose ids hash lowest."""

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        heap: list[tuple[float, int, Record]] = []  # the highest hash first, to be the first to go
        size = number = 0
        for record in records:
            held = kept(record)[1]
            if not held:
                yield Dropped(record, "train")
            for text in cut(held, PIECE):
                piece = _part(record, text)
                number += 1
                heapq.heappush(heap, (-place(piece.id, seed), number, piece))
                size += len(text.encode("utf-8", "surrogatepass"))
                while size > most and len(heap) > 1:
                    gone = heapq.heappop(heap)[2]
                    size -= len(gone["text"].encode("utf-8", "surrogatepass"))
        for _, _, piece in sorted(heap, key=lambda item: item[1]):
            yield piece

    return stage


def _part(record: Record, text: str) -> Record:
    return make_record("text", {"text": text}, source=record.source, licence=record.licence, **record.meta)


def _tail(text: str, fraction: float) -> tuple[str, str]:
    """A text and its end, about `fraction` of it; no end where that would be a sentence or two."""
    start = _break(text, int(len(text) * (1 - fraction)))
    return (text[:start], text[start:]) if len(text) - start >= _LEAST else (text, "")


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of at least `size` characters, cut at paragraphs, else lines, else words; the rest is the last one's."""
    at = 0
    while at < len(text):
        end = _break(text, at + size) if len(text) - at >= 2 * size else len(text)
        if piece := text[at:end].strip():
            yield piece
        at = end


def _break(text: str, at: int) -> int:
    """Where the text may be cut next: after a blank line within PIECE characters, else a line, else a word."""
    for pattern in _CUT:
        if found := pattern.search(text, at, at + PIECE):
            return found.end()
    return min(at, len(text))
