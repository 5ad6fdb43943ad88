"""`ladderlm data collect|split|stats`: text gathered, datasets split, datasets described."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.data.collect import collect
from ladderlm.data.records import read_records, split, write_records
from ladderlm.data.stats import Stats, stats
from ladderlm.data.tasks import BUILTIN
from ladderlm.errors import UsageError, nearest
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class CollectConfig:
    paths: tuple[str, ...] = option(
        help="files, folders or globs; python:sources, python:docs; or one of " + ", ".join(BUILTIN)
    )
    out: str = option("corpus.jsonl", "where to write the records (.jsonl, .jsonl.gz)", short="-o")
    licence: str = option("unknown", "the licence of texts that do not name their own")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class SplitConfig:
    file: str = option(help="a dataset")
    fraction: float = option(0.1, "how much to hold out")
    seed: int = option(0, "another seed, another split")
    by: str = option("", "hold out whole sources, or records by id (default: sources if there are ten)",
                     choices=("", "source", "id"))  # fmt: skip
    out: str = option("", "the folder for train.jsonl and test.jsonl (default: beside the file)", short="-o")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class StatsConfig:
    file: str = option(help="a dataset")
    model: str = option("", "also count tokens, with this model's tokenizer")
    skip_bad: bool = option(False, "leave out lines that cannot be read, and say how many")
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    verbs = {"collect": _collect, "split": _split, "stats": _stats}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: ladderlm data collect|split|stats ...\n\n  collect  texts from files, folders, or the Python"
              " library\n  split    hold a part out\n  stats    what is in a dataset")  # fmt: skip
        return 0
    if argv[0] not in verbs:
        print(f"ladderlm data: unknown verb {argv[0]!r}: {nearest(argv[0], verbs)}", file=sys.stderr)
        return 2
    return verbs[argv[0]](argv[1:])


def _collect(argv: list[str]) -> int:
    config = parse("data collect", CollectConfig, argv, description="Gather texts into one dataset.")
    builtin = [p for p in config.paths if p in BUILTIN]
    with show.progress():
        if builtin:
            if len(config.paths) > 1:
                raise UsageError("a built-in dataset is collected alone", where=builtin[0])
            return _write_splits(BUILTIN[builtin[0]](), Path(config.out), config.json)
        records = collect(*config.paths, licence=config.licence)
        write_records(config.out, records)
    _describe({str(config.out): stats(records)}, config.json)
    return 0


def _split(argv: list[str]) -> int:
    config = parse("data split", SplitConfig, argv, description="Split a dataset in two, the same way every time.")
    with show.progress():
        records = read_records(config.file, skip_bad=config.skip_bad)
        train, test = split(records, config.fraction, config.seed, config.by or None)  # type: ignore[arg-type]
        file = Path(config.file)
        name = file.name.removesuffix(".gz").rsplit(".", 1)[0]
        folder = Path(config.out) if config.out else file.parent
        return _write_splits({"train": train, "test": test}, folder / f"{name}.jsonl", config.json)


def _write_splits(splits: Mapping[str, Sequence[Record]], out: Path, as_json: bool) -> int:
    """Writes NAME.train.jsonl and NAME.test.jsonl for out = NAME.jsonl."""
    zipped = ".gz" if out.name.endswith(".gz") else ""
    base = out.name.removesuffix(".gz").removesuffix(".jsonl")
    described = {}
    for name, records in splits.items():
        path = out.with_name(f"{base}.{name}.jsonl{zipped}")
        write_records(path, records)
        described[str(path)] = stats(records)
    _describe(described, as_json)
    return 0


def _stats(argv: list[str]) -> int:
    config = parse("data stats", StatsConfig, argv, description="Count records, words, tokens, sources and licences.")
    with show.progress():
        records = read_records(config.file, skip_bad=config.skip_bad)
        tokenizer = None
        if config.model:
            from ladderlm.models import open_model

            tokenizer = open_model(config.model).tokenizer
        found = stats(records, tokenizer)
    _describe({str(config.file): found}, config.json)
    return 0


def _describe(found: dict[str, Stats], as_json: bool) -> None:
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
