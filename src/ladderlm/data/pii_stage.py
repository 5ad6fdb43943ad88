"""Personal data found, masked or dropped in a stream of records."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

from ladderlm.data.pii import DEFAULT, Finding, Names, find
from ladderlm.data.pseudonyms import Pseudonyms
from ladderlm.data.rewrite import Edit, apply, rewrite, texts
from ladderlm.data.stages import Dropped, Stage
from ladderlm.errors import NotFound, UsageError, nearest
from ladderlm.types import Record

Action = Literal["find", "mask", "drop"]


def mask(text: str, findings: Sequence[Finding], pseudonyms: Pseudonyms | None = None) -> str:
    """`text` with each finding replaced: by <KIND>, or by its stand-in."""
    return apply(text, _edits(text, findings, pseudonyms))


def _edits(text: str, findings: Sequence[Finding], pseudonyms: Pseudonyms | None) -> list[Edit]:
    return [
        Edit(
            f.start, f.end, pseudonyms.stand_in(f.kind, text[f.start : f.end]) if pseudonyms else f"<{f.kind.upper()}>"
        )
        for f in findings
    ]


def pii_stage(
    action: Action,
    kinds: Sequence[str] = DEFAULT,
    *,
    names: Names | None = None,
    pseudonyms: Pseudonyms | None = None,
    counts: Counter[str] | None = None,
) -> Stage:
    """find: meta.pii tells how many of each kind; mask: the text is changed; drop: such records are left out.

    `counts` hears how many of each kind were found. Raises UsageError for an unknown action or kind.
    """
    if action not in get_args(Action):
        raise UsageError(f"unknown action {action!r}", cure=nearest(action, get_args(Action)))
    if pseudonyms and action != "mask":
        raise UsageError("pseudonyms need the action mask", where=f"action {action}")
    find("", kinds)  # an unknown kind is told before the first record
    counts = Counter() if counts is None else counts

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        for record in records:
            if action == "mask":
                yield _masked(record)
                continue
            seen = Counter(f.kind for text in texts(record) for f in find(text, kinds, names))
            counts.update(seen)
            if seen and action == "drop":
                yield Dropped(record, f"pii-{min(seen)}")
            else:
                yield dataclasses.replace(record, meta={**record.meta, "pii": dict(seen)}) if seen else record

    def _masked(record: Record) -> Record:
        def edits(text: str) -> list[Edit]:
            findings = find(text, kinds, names)
            counts.update(f.kind for f in findings)
            return _edits(text, findings, pseudonyms)

        return rewrite(record, edits)

    return stage


def spacy_names(pipeline: str) -> Names:
    """People's names by an installed spaCy pipeline (its entities PERSON or PER).

    Raises NotFound without spaCy or for a pipeline that is not installed; nothing is fetched.
    """
    try:
        spacy: Any = importlib.import_module("spacy")
    except ImportError:
        raise NotFound("spaCy is not installed", where=f"names {pipeline}", cure="pip install spacy") from None
    try:
        nlp = spacy.load(pipeline, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])
    except OSError:
        raise NotFound("no such spaCy pipeline is installed", where=pipeline, cure="pip install it first") from None

    def names(text: str) -> Iterator[tuple[int, int]]:
        # the pipeline refuses long texts: it works through them in pieces that end at a line or a blank
        for start, piece in _pieces(text, 100_000):
            yield from (
                (start + e.start_char, start + e.end_char) for e in nlp(piece).ents if e.label_ in ("PERSON", "PER")
            )

    return names


def _pieces(text: str, most: int) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = min(len(text), start + most)
        if end < len(text):
            cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end))
            end = cut + 1 if cut > start else end
        yield start, text[start:end]
        start = end
