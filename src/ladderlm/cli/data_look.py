"""`ladderlm data stats`: what is in a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.data.records import read_records
from ladderlm.data.stats import Stats, stats


@dataclass(frozen=True, slots=True)
class StatsConfig:
    file: str = option(help="a dataset")
    model: str = option("", "also count tokens, with this model's tokenizer")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    json: bool = option(False, "print JSON")


def stats_(argv: list[str]) -> int:
    config = parse("data stats", StatsConfig, argv, description="Count records, words, tokens, sources and licences.")
    with show.progress():
        records = read_records(config.file, skip_bad=config.skip_bad)
        tokenizer = None
        if config.model:
            from ladderlm.models import open_model

            tokenizer = open_model(config.model).tokenizer
        found = stats(records, tokenizer)
    describe({str(config.file): found}, config.json)
    return 0


def describe(found: dict[str, Stats], as_json: bool) -> None:
    if as_json:
        show.emit_json({path: s.to_dict() for path, s in found.items()})
        return
    rows: list[tuple[str, str, str]] = []
    for path, s in found.items():
        rows.append((path, "records", f"{s.records:,} ({_most(s.kinds)}), {s.repeated:,} repeated"))
        rows.append((path, "size", f"{s.bytes:,} bytes, {s.words:,} words"))
        rows.append((path, "words a record", "least {:,}, median {:,}, 95 % {:,}, most {:,}".format(*s.words_each)))
        if s.tokens_each:
            each = "least {:,}, median {:,}, 95 % {:,}, most {:,}".format(*s.tokens_each)
            rows.append((path, "tokens", f"{s.tokens:,}; a record: {each}"))
        rows.append((path, "sources", f"{len(s.sources):,}: {_most(s.sources)}"))
        rows.append((path, "licences", _most(s.licences)))
        if s.labels:
            rows.append((path, "labels", _most(s.labels)))
    show.table(rows, ("dataset", "what", "figure"))


def _most(counts: Mapping[str, int], shown: int = 5) -> str:
    parts = [f"{name} {n:,}" for name, n in list(counts.items())[:shown]]
    return ", ".join(parts) + (", ..." if len(counts) > shown else "")
