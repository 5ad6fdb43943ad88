"""`ladderlm data collect`: texts gathered into one dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.data_look import describe
from ladderlm.cli.data_mix import write_splits
from ladderlm.config import option
from ladderlm.data.collect import collect
from ladderlm.data.records import write_records
from ladderlm.data.stats import stats
from ladderlm.data.tasks import BUILTIN
from ladderlm.errors import UsageError


@dataclass(frozen=True, slots=True)
class CollectConfig:
    paths: tuple[str, ...] = option(
        help="files, folders or globs; python:sources, python:docs; or one of " + ", ".join(BUILTIN)
    )
    out: str = option("corpus.jsonl", "where to write the records (.jsonl, .jsonl.gz)", short="-o")
    licence: str = option("unknown", "the licence of texts that do not name their own")
    json: bool = option(False, "print JSON")


def collect_(argv: list[str]) -> int:
    config = parse("data collect", CollectConfig, argv, description="Gather texts into one dataset.")
    builtin = [p for p in config.paths if p in BUILTIN]
    with show.progress():
        if builtin:
            if len(config.paths) > 1:
                raise UsageError("a built-in dataset is collected alone", where=builtin[0])
            return write_splits(BUILTIN[builtin[0]](), Path(config.out), config.json)
        records = collect(*config.paths, licence=config.licence)
        write_records(config.out, records)
    describe({str(config.out): stats(records)}, config.json)
    return 0
