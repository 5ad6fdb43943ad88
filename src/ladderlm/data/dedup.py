"""Duplicates left out: exact and near ones, whole documents, paragraphs or sentences; the first copy stays.

Two passes over the stream: the first puts hashes and signatures on disk, the second drops. What differs only in white
space is an exact duplicate; near ones are found by MinHash (minhash.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ladderlm.data.minhash import Index, Links, MinHash
from ladderlm.data.stages import Dropped, Stage, rereadable
from ladderlm.errors import UsageError
from ladderlm.types import Record

Level = Literal["document", "paragraph", "sentences"]
_END = re.compile(r"[.!?][\"'”’»)\]]*\s+|[。！？]\s*|\n\s*")
_BREAK = re.compile(r"(\n[^\S\n]*\n\s*)")


def dedup(
    level: Level = "document",
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
    of which nothing is left is dropped. At level "sentences" the same is done with spans of three sentences that came
    before word by word, after Raffel et al. 2020, section 2.2. Raises UsageError for a setting out of range.
    """
    if level not in get_args(Level):
        raise UsageError(f"unknown level {level!r}", cure="document, paragraph or sentences")
    if not 0 < threshold <= 1 or not 16 <= permutations <= 4096 or not 1 <= ngram <= 100:
        where = f"threshold={threshold}, permutations={permutations}, ngram={ngram}"
        raise UsageError(
            "out of range", where=where, cure="threshold in (0, 1], permutations 16 to 4096, ngram 1 to 100"
        )
    counts: Counter[str] = Counter() if changed is None else changed

    def stage(records: Iterable[Record]) -> Iterator[Record | Dropped]:
        minhash = None if exact or level == "sentences" else MinHash(permutations, ngram)
        with tempfile.TemporaryDirectory(prefix="ladderlm-dedup-") as folder, rereadable(records) as twice:
            index = Index(Path(folder), minhash, permutations=permutations, threshold=threshold)
            for record in twice:
                for text in _units(record, level, least_words):
                    index.add(text)
            links = index.link()
            if level == "document":
                yield from _documents(twice, links)
            elif level == "sentences":
                yield from _without_sentences(twice, links, least_words, counts)
            else:
                yield from _without_paragraphs(twice, links, least_words, counts)

    return stage


def _units(record: Record, level: str, least_words: int) -> list[str]:
    if level == "document":
        return [_content(record)]
    if level == "sentences":
        return [text for _, text in _spans(_sentences(record), least_words)]
    return [p for p in _paragraphs(record)[::2] if _counts(p, least_words)]


def _content(record: Record) -> str:
    """What must repeat: the text; of other kinds every field."""
    if record.kind == "text":
        return str(record["text"])
    return json.dumps([record.kind, record.fields], sort_keys=True, ensure_ascii=False)


def _paragraphs(record: Record) -> list[str]:
    """Paragraphs at even places, what lies between them at odd ones."""
    return _BREAK.split(record["text"]) if record.kind == "text" else []


def _sentences(record: Record) -> list[str]:
    """The sentences and lines of a text, each with the space after it."""
    if record.kind != "text":
        return []
    text: str = record["text"]
    ends = [found.end() for found in _END.finditer(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


def _spans(sentences: Sequence[str], least_words: int) -> Iterator[tuple[int, str]]:
    """(number of its first sentence, text) of each span of three that has `least_words`."""
    for i in range(len(sentences) - 2):
        text = " ".join(sentences[i : i + 3])
        if _counts(text, least_words):
            yield i, text


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


def _without_sentences(
    records: Iterable[Record], links: Links, least_words: int, counts: Counter[str]
) -> Iterator[Record | Dropped]:
    at = 0
    for record in records:
        sentences = _sentences(record)
        gone: set[int] = set()
        for first, _ in _spans(sentences, least_words):
            if int(links.root[at]) != at:
                gone.update(range(first, first + 3))
            at += 1
        if not gone:
            yield record
            continue
        counts["repeated-sentences"] += len(gone)
        if text := "".join(s for i, s in enumerate(sentences) if i not in gone).strip():
            yield dataclasses.replace(record, fields={**record.fields, "text": text})
        else:
            yield Dropped(record, "duplicate-sentences")
