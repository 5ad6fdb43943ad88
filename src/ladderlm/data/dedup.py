"""Duplicates left out: exact and near ones, whole documents or paragraphs; the first copy stays.

Two passes over the stream: the first puts hashes and signatures on disk, the second drops. What differs only in white
space is an exact duplicate; near ones are found by MinHash (minhash.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ladderlm.data.minhash import Index, Links, MinHash
from ladderlm.data.stages import Dropped, Stage, rereadable
from ladderlm.errors import UsageError
from ladderlm.types import Record

_BREAK = re.compile(r"(\n[^\S\n]*\n\s*)")


def dedup(
    level: Literal["document", "paragraph"] = "document",
    *,
    exact: bool = False,
    threshold: float = 0.65,
    permutations: int = 512,
    ngram: int = 5,
    least_words: int = 20,
    changed: Counter[str] | None = None,
) -> Stage:
    """The stage that leaves duplicates out; with `exact`, only exact ones.

    Texts are near duplicates when the Jaccard index of their word `ngram`-grams, estimated from `permutations`
    hashes, is at least `threshold`, or when a chain of such pairs joins them. A dropped record tells the id of the
    one that stayed (meta.duplicate_of) and their likeness (meta.similarity). At level "paragraph", paragraphs of
    at least `least_words` words that came before are cut out of text records (counted in `changed`), and a record
    of which nothing is left is dropped. Raises UsageError for a setting out of range.
    """
    if level not in ("document", "paragraph"):
        raise UsageError(f"unknown level {level!r}", cure="document or paragraph")
    if not 0 < threshold <= 1 or not 16 <= permutations <= 4096 or not 1 <= ngram <= 100:
        where = f"threshold={threshold}, permutations={permutations}, ngram={ngram}"
        raise UsageError(
            "out of range", where=where, cure="threshold in (0, 1], permutations 16 to 4096, ngram 1 to 100"
        )
    counts: Counter[str] = Counter() if changed is None else changed

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        minhash = None if exact else MinHash(permutations, ngram)
        with tempfile.TemporaryDirectory(prefix="ladderlm-dedup-") as folder, rereadable(records) as twice:
            index = Index(Path(folder), minhash, permutations=permutations, threshold=threshold)
            for record in twice:
                for text in _units(record, level, least_words):
                    index.add(text)
            links = index.link()
            if level == "document":
                yield from _documents(twice, links)
            else:
                yield from _without_paragraphs(twice, links, least_words, counts)

    return stage


def _units(record: Record, level: str, least_words: int) -> list[str]:
    if level == "document":
        return [_content(record)]
    return [p for p in _paragraphs(record)[::2] if _counts(p, least_words)]


def _content(record: Record) -> str:
    """What must repeat: the text; of other kinds every field."""
    if record.kind == "text":
        return str(record["text"])
    return json.dumps([record.kind, record.fields], sort_keys=True, ensure_ascii=False)


def _paragraphs(record: Record) -> list[str]:
    """Paragraphs at even places, what lies between them at odd ones."""
    return _BREAK.split(record["text"]) if record.kind == "text" else []


def _counts(paragraph: str, least_words: int) -> bool:
    return len(paragraph) >= 2 * least_words - 1 and len(paragraph.split(None, least_words)) >= least_words


def _documents(records: Iterable[Record], links: Links) -> Iterator[Record | Dropped]:
    """Drops each record that is not its group's root. Only the ids of roots that have copies are held."""
    root = links.root
    copied = np.zeros(len(root), bool)
    copied[root[root != np.arange(len(root))]] = True
    ids: dict[int, str] = {}
    for i, record in enumerate(records):
        first = int(root[i])
        if first == i:
            if copied[i]:
                ids[i] = record.id
            yield record
            continue
        meta = {**record.meta, "duplicate_of": ids[first], "similarity": round(links.similarity(i), 3)}
        rule = "exact-duplicate" if links.exact[i] else "near-duplicate"
        yield Dropped(dataclasses.replace(record, meta=meta), rule)


def _without_paragraphs(
    records: Iterable[Record], links: Links, least_words: int, counts: Counter[str]
) -> Iterator[Record | Dropped]:
    at = 0
    for record in records:
        pieces, kept, cut = _paragraphs(record), list[str](), False
        for place, text in enumerate(pieces):
            gone = False
            if place % 2 == 0 and _counts(text, least_words):
                gone = int(links.root[at]) != at
                if gone:
                    counts["exact-paragraph" if links.exact[at] else "near-paragraph"] += 1
                at += 1
            if gone:
                cut = True
                kept = kept[:-1]  # the space before it goes too
            elif kept or place % 2 == 0:
                kept.append(text)
        if not cut:
            yield record
        elif (text := "".join(kept).strip()) == "":
            yield Dropped(record, "duplicate-paragraphs")
        else:
            yield dataclasses.replace(record, fields={**record.fields, "text": text})
