"""What is in a dataset: how many, how long, from where, under which licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ladderlm.types import Record, Value


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Stats(Value):
    """Counts, largest first. `tokens` and `tokens_each` are None without a tokenizer; `*_each` hold the least, the
    median, the 95th percentile and the most of a record. `repeated` counts records whose content came before."""

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


def stats(records: Sequence[Record], tokenizer: Encoder | None = None) -> Stats:
    texts = [content(r) for r in records]
    words = [len(t.split()) for t in texts]
    tokens = [len(ids) for ids in tokenizer.encode_batch(texts)] if tokenizer else None
    return Stats(
        len(records),
        sum(len(t.encode("utf-8", "surrogatepass")) for t in texts),
        sum(words),
        len(records) - len({(r.kind, t) for r, t in zip(records, texts, strict=True)}),
        _spread(words),
        _count(r.kind for r in records),
        _count(r.source for r in records),
        _count(r.licence for r in records),
        _count(r["label"] for r in records if r.kind == "class"),
        sum(tokens) if tokens is not None else None,
        _spread(tokens) if tokens is not None else None,
    )


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


def _spread(values: Sequence[int]) -> tuple[int, int, int, int]:
    if not values:
        return 0, 0, 0, 0
    low, middle, high, most = (int(v) for v in np.quantile(values, [0, 0.5, 0.95, 1]))
    return low, middle, high, most


def _count(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
