"""What is in a dataset: how many, how long, from where, in which languages, under which licences.

One pass over a stream; memory holds twelve bytes a record and a bounded number of names.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np

from ladderlm.types import Record, Value

MOST_NAMES = 100_000  # different sources, domains, ...; what comes later is counted as OTHER
SHOWN = 1000
OTHER = "(other)"
_BATCH = 256
_DOMAIN = re.compile(r"https?://(?:[^/@\s]*@)?(?:www\.)?([^/:?#\s]+)")


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Stats(Value):
    """Counts, largest first. `tokens` and `tokens_each` are None without a tokenizer; `*_each` hold the least, the
    median, the 95th percentile and the most of a record. `repeated` counts records whose content came before.
    `lengths` counts records by words: up to 1, 2, 4, 8, ... of them."""

    records: int
    bytes: int
    words: int
    repeated: int
    words_each: tuple[int, int, int, int]
    kinds: Mapping[str, int]
    sources: Mapping[str, int]
    licences: Mapping[str, int]
    labels: Mapping[str, int]
    tokens: int | None = None
    tokens_each: tuple[int, int, int, int] | None = None
    domains: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()


def stats(
    records: Iterable[Record], tokenizer: Encoder | None = None, language: Callable[[str], str] | None = None
) -> Stats:
    """`language` names the language of a text; without it a record's own meta.language counts."""
    counts = {name: Counter[str]() for name in ("kinds", "sources", "licences", "labels", "domains", "languages")}
    words, tokens, hashes = array("I"), array("I"), array("Q")
    size = 0
    for batch in _batches(records):
        texts = [content(r) for r in batch]
        if tokenizer:
            tokens.extend(len(ids) for ids in tokenizer.encode_batch(texts))
        for record, text in zip(batch, texts, strict=True):
            data = text.encode("utf-8", "surrogatepass")
            size += len(data)
            words.append(len(text.split()))
            digest = hashlib.blake2b(record.kind.encode() + b"\0" + data, digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "little"))
            for name, value in _names(record, text, language):
                count = counts[name]
                count[value if value in count or len(count) < MOST_NAMES else OTHER] += 1
    shown = {name: dict(count.most_common(SHOWN)) for name, count in counts.items()}
    each = np.frombuffer(words, np.uint32) if words else np.zeros(0, np.uint32)
    return Stats(
        len(words), size, int(each.sum(dtype=np.int64)), len(hashes) - len(np.unique(np.array(hashes, np.uint64))),
        _spread(each), shown["kinds"], shown["sources"], shown["licences"], shown["labels"],
        sum(tokens) if tokenizer else None, _spread(np.array(tokens)) if tokenizer else None,
        shown["domains"], shown["languages"], _histogram(each),
    )  # fmt: skip


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    left = iter(records)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _names(record: Record, text: str, language: Callable[[str], str] | None) -> Iterator[tuple[str, str]]:
    yield "kinds", record.kind
    yield "sources", record.source
    yield "licences", record.licence
    if record.kind == "class":
        yield "labels", record["label"]
    address = _DOMAIN.match(str(record.meta.get("url") or record.source))
    if address:
        yield "domains", address[1].lower()
    spoken = language(text) if language else record.meta.get("language")
    if spoken:
        yield "languages", str(spoken)


def content(record: Record) -> str:
    """All the text of a record, a line per field."""
    return "\n".join(_strings(list(record.fields.values())))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return _strings([v for k, v in value.items() if k != "role"])
    if isinstance(value, (list, tuple)):
        return [s for v in value for s in _strings(v)]
    return []


def _spread(values: Any) -> tuple[int, int, int, int]:
    if not len(values):
        return 0, 0, 0, 0
    low, middle, high, most = (int(v) for v in np.quantile(values, [0, 0.5, 0.95, 1]))
    return low, middle, high, most


def _histogram(words: Any) -> tuple[int, ...]:
    """How many records have up to 1, 2, 4, ... words; as many bins as are needed."""
    if not len(words):
        return ()
    bins = np.ceil(np.log2(np.maximum(words, 1))).astype(int)
    return tuple(int(n) for n in np.bincount(bins))
