"""`ladderlm runs [ID]`: what was run, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ladderlm import store
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option


@dataclass(frozen=True, slots=True)
class RunsConfig:
    run: str = option("", "a run's id or path; without it, the list", positional=True)
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    config = parse("runs", RunsConfig, argv, description="List runs, or show one.")
    if config.run:
        run = store.open_run(config.run)
        rows = store.read_jsonl(run.metrics)
        if config.json:
            show.emit_json({"config": store.read_json(run.config), "metrics": rows})
        elif run.report.exists():
            print(run.report.read_text(encoding="utf-8"))
        else:
            print(f"{run.path}: {len(rows)} rows of metrics, no report yet")
            if rows:
                print(rows[-1])
        return 0
    listed = []
    for run in store.list_runs():
        config_ = store.read_json(run.config)
        listed.append(
            (
                run.id,
                config_.get("kind", "?"),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(config_.get("created", 0))),
            )
        )
    if config.json:
        show.emit_json([dict(zip(("run", "kind", "created"), row, strict=True)) for row in listed])
    else:
        show.table(listed, ("run", "kind", "created"))
    return 0
