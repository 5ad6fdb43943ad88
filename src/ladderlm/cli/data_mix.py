"""`ladderlm data split`: a part of a dataset held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.data_look import describe
from ladderlm.config import option
from ladderlm.data.records import read_records, split, write_records
from ladderlm.data.stats import stats
from ladderlm.types import Record


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


def split_(argv: list[str]) -> int:
    config = parse("data split", SplitConfig, argv, description="Split a dataset in two, the same way every time.")
    with show.progress():
        records = read_records(config.file, skip_bad=config.skip_bad)
        train, test = split(records, config.fraction, config.seed, config.by or None)  # type: ignore[arg-type]
        file = Path(config.file)
        name = file.name.removesuffix(".gz").rsplit(".", 1)[0]
        folder = Path(config.out) if config.out else file.parent
        return write_splits({"train": train, "test": test}, folder / f"{name}.jsonl", config.json)


def write_splits(splits: Mapping[str, Sequence[Record]], out: Path, as_json: bool) -> int:
    """Writes NAME.train.jsonl and NAME.test.jsonl for out = NAME.jsonl."""
    zipped = ".gz" if out.name.endswith(".gz") else ""
    base = out.name.removesuffix(".gz").removesuffix(".jsonl")
    described = {}
    for name, records in splits.items():
        path = out.with_name(f"{base}.{name}.jsonl{zipped}")
        write_records(path, records)
        described[str(path)] = stats(records)
    describe(described, as_json)
    return 0
