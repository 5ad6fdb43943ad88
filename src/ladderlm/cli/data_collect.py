"""`ladderlm data collect`: texts gathered into one dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.data_mix import write_splits
from ladderlm.config import option
from ladderlm.data.collect import run_collect
from ladderlm.data.tasks import BUILTIN
from ladderlm.data.web import Manners
from ladderlm.errors import UsageError


@dataclass(frozen=True, slots=True)
class CollectConfig:
    paths: tuple[str, ...] = option(
        help="files, folders or globs (texts, code, HTML, PDF, DOCX, EPUB, JSONL, Parquet, CSV, WARC, Wikipedia dumps,"
        " archives of these); web addresses of pages, sitemaps or files; urls:FILE; hub:datasets/org/name;"
        " python:sources, python:docs; or one of " + ", ".join(BUILTIN)
    )
    out: str = option("corpus.jsonl", "where to write the records (.jsonl, .gz, .zst, .xz; - for stdout)", short="-o")
    licence: str = option("unknown", "the licence of texts that do not name their own")
    text_field: str = option("", "the column of tables that holds the text (default: text)")
    delay: float = option(1.0, "seconds between two requests to one host")
    timeout: float = option(30.0, "seconds to wait for a server")
    report: str = option("", "where to write the report (default: OUT.report.json)")
    dropped: str = option("", "a file for what was left out, each with its rule")
    json: bool = option(False, "print JSON")


def collect_(argv: list[str]) -> int:
    config = parse("data collect", CollectConfig, argv, description="Gather texts into one dataset.")
    builtin = [p for p in config.paths if p in BUILTIN]
    with show.progress():
        if builtin:
            if len(config.paths) > 1:
                raise UsageError("a built-in dataset is collected alone", where=builtin[0])
            return write_splits(BUILTIN[builtin[0]](), Path(config.out), config.json)
        if config.delay < 0 or config.timeout <= 0:
            raise UsageError("delay must not be negative, timeout must be positive", where="--delay, --timeout")
        done = run_collect(
            config.paths, config.out, licence=config.licence, text_field=config.text_field,
            manners=Manners(config.delay, config.timeout), report=config.report, dropped=config.dropped,
        )  # fmt: skip
    show.stage(done, config.out, config.json)
    return 0
