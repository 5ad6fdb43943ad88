"""`ladderlm data shard`: records tokenised into a folder that pretraining reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import UsageError
from ladderlm.types import Record


@dataclass(frozen=True, slots=True)
class ShardConfig:
    files: tuple[str, ...] = option(help="records (.jsonl, .gz, .zst, .xz) or texts; - is stdin")
    out: str = option("shards", "the folder to write; one that was begun is finished", short="-o")
    tokenizer: str = option("smollm2-135m-instruct", "a model, a model folder or a tokenizer.json")
    shard_mb: int = option(32, "megabytes of text in a shard")
    workers: int = option(2, "shards made at the same time")
    json: bool = option(False, "print the index")


def shard_(argv: list[str]) -> int:
    config = parse("data shard", ShardConfig, argv, description="Tokenise records into memory-mapped shards.")
    from ladderlm.cli.tokenizer import open_tokenizer
    from ladderlm.data.shards import write_shards
    from ladderlm.data.stages import read_report, stream

    if config.shard_mb < 1 or config.workers < 1:
        raise UsageError("shard_mb and workers are at least 1")

    def records() -> Iterator[Record]:
        for file in config.files:
            yield from stream(file)

    lineage = [report for file in config.files if file != "-" and (report := read_report(file))]
    with show.progress():
        made = write_shards(
            records(), open_tokenizer(config.tokenizer), config.out,
            shard_bytes=config.shard_mb << 20, workers=config.workers, lineage=lineage,
        )  # fmt: skip
    if config.json:
        show.emit_json(made.index)
    else:
        print(f"{config.out}: {len(made):,} tokens in {made.documents:,} documents, {len(made.edges) - 1} shards")
    return 0
