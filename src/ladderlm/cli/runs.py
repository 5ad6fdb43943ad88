"""`ladderlm runs [ID]` and `ladderlm runs compare A B`: what was run, what came of it, and which is better."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ladderlm import store
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option


@dataclass(frozen=True, slots=True)
class RunsConfig:
    run: str = option("", "a run's id or path; without it, the list; or: compare A B", positional=True)
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class CompareConfig:
    first: str = option(help="a run's id or path")
    second: str = option(help="another: is its model better?")
    report: str = option("", "a folder to write report.md and report.html to")
    json: bool = option(False, "print JSON")


def main(argv: list[str]) -> int:
    if argv[:1] == ["compare"]:
        return compare_(argv[1:])
    config = parse("runs", RunsConfig, argv, description="List runs, or show one; runs compare A B compares two.")
    if config.run:
        return _show(config)
    listed = []
    for run in store.list_runs():
        stored = store.read_json(run.config)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.get("created", 0)))
        told = run.path / "outcome.json"
        verdict = store.read_json(told).get("verdict", "") if told.exists() else ""
        listed.append((run.id, stored.get("kind", "?"), when, verdict))
    columns = ("run", "kind", "created", "did it help?")
    if config.json:
        names = ("run", "kind", "created", "verdict")
        show.emit_json([dict(zip(names, row, strict=True)) for row in listed])
    else:
        show.table(listed, columns)
    return 0


def _show(config: RunsConfig) -> int:
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


def compare_(argv: list[str]) -> int:
    from ladderlm.evals.runs import compare

    config = parse(
        "runs compare", CompareConfig, argv, description="Is the second run's model better than the first's?"
    )
    found, page = compare(store.open_run(config.first), store.open_run(config.second))
    if config.report:
        page.write(config.report)
    if config.json:
        show.emit_json(found.to_dict())
    else:
        print(page.to_markdown())
    return 0
