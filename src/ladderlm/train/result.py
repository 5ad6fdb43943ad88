"""What the three training commands have in common: where results go, what they come from, and how they end."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ladderlm import events, store
from ladderlm.errors import Cancelled, FormatError, StorageError, UsageError
from ladderlm.evals.outcome import Outcome
from ladderlm.evals.outcome import fill as fill_outcome
from ladderlm.evals.report import Report
from ladderlm.train.checkpoint import discard_checkpoints
from ladderlm.train.loop import Fit
from ladderlm.train.planned import PlanOutcome
from ladderlm.types import Record, Run, Value

C = TypeVar("C", bound=Value)


@dataclass(frozen=True, slots=True)
class Result(Value):
    """`model` is the folder written, `run` the id of the run; `scores` before and after on held-out data.

    `planned`: what it was predicted to take, and took.
    """

    model: str
    run: str
    steps: int
    tokens: int
    seconds: float
    loss: float
    scores: Mapping[str, Any] = field(default_factory=dict)
    planned: PlanOutcome | None = None


def begin(kind: str, config: C, resume: str) -> tuple[Run, C]:
    """A new run that holds `config`, or the run to resume and the settings it began with.

    Raises StorageError early when the place of the result is taken.
    """
    settings = config
    if resume:
        run = store.open_run(resume)
        stored = store.read_json(run.config)
        if stored.get("kind") != kind:
            raise UsageError(f"not a {kind} run", where=run.id)
        settings = type(config).from_dict(stored["settings"])
    out, replace = settings.out, settings.replace  # type: ignore[attr-defined]
    if destination(out).exists() and not replace:
        raise StorageError("already exists", where=str(destination(out)), cure="choose another --out, or --replace")
    return (run if resume else store.new_run(kind, {"settings": settings.to_dict()})), settings


def destination(out: str) -> Path:
    """Where a result goes: a name lives among the workspace's models, anything else is a path."""
    if re.fullmatch(r"[\w][\w.-]*", out):
        return store.models_dir() / out
    if not out:
        raise UsageError("the result needs a name or a path", where="out")
    return Path(out).expanduser()


def use_threads(threads: int) -> None:
    torch.set_num_threads(threads or os.cpu_count() or 1)


def describe_data(source: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """What a lineage says of the data: one entry per licence, with a hash over the records' ids."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.licence].append(record)
    return [
        {
            "source": source,
            "licence": licence,
            "sha256": hashlib.sha256("\n".join(r.id for r in group).encode()).hexdigest(),
            "records": len(group),
        }
        for licence, group in sorted(groups.items())
    ]


def check_finished(run: Run, fit: Fit, verb: str) -> None:
    """Raises Cancelled, with the command that goes on, when the loop was stopped before its end."""
    if fit.stopped:
        raise Cancelled(
            f"stopped after step {fit.steps} of {fit.total}, checkpoint written", where=f"run {run.id}",
            cure=f"go on with: ladderlm {verb} --resume {run.id}",
        )  # fmt: skip


def conclude(
    run: Run, title: str, summary: str, path: Path, fit: Fit, scores: Mapping[str, Any],
    fill: Callable[[Report], None] | None = None, outcome: Outcome | None = None, planned: PlanOutcome | None = None,
) -> Result:  # fmt: skip
    """Writes result.json and the one-page report, and drops the checkpoints: the result has been saved.

    The page begins with the `outcome`, if there is one; `fill` adds sections of its own after the scores.
    """
    if outcome:
        outcome.save(run)
    result = Result(str(path.resolve()), run.id, fit.steps, fit.tokens, fit.seconds, fit.loss, dict(scores), planned)
    store.write_json(run.path / "result.json", {"format": 1, **result.to_dict()})
    report = Report(title, summary)
    if outcome:
        fill_outcome(report, outcome)
    flat = [(name.replace("_", " "), value) for name, value in scores.items() if not isinstance(value, Mapping)]
    report.section("Scores").table(("what", "value"), flat)
    if fill:
        fill(report)
    rows = store.read_jsonl(run.metrics)
    curves = {"training": [(r["step"], r["loss"]) for r in rows]}
    held = [(r["step"], r["held_out_loss"]) for r in rows if "held_out_loss" in r]
    kept = f"The weights are those of step {fit.best:,}, where the held-out loss was lowest." if fit.best else ""
    report.section("Course", kept).curve("loss", curves | ({"held out": held} if held else {}), y="loss")
    speed = fit.tokens / max(fit.seconds, 1e-9)
    report.table(("steps", "tokens", "seconds", "tokens/s"), [(fit.steps, fit.tokens, fit.seconds, speed)])
    if planned:
        report.section("As foretold", f"Predicted from {planned.source}.")
        report.table(("what", "predicted", "measured", "error"), planned.rows())
    if fit.rollbacks:
        rows_back = [(b["at"], b["to"], b["why"]) for b in fit.rollbacks]
        report.section("Rollbacks").table(("at step", "back to", "why"), rows_back)
    report.write(run.path)
    discard_checkpoints(run)
    events.emit("result", f"{summary} Saved to {path}; report: {run.report}")
    return result


def bad_rows(where: str, problems: Sequence[tuple[int, str]], skip_bad: bool) -> None:
    """Reports rows that cannot be trained on: the first few by number and reason. An error unless `skip_bad`."""
    if not problems:
        return
    shown = "; ".join(f"record {number}: {reason}" for number, reason in problems[:5])
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    if not skip_bad:
        raise FormatError(f"{len(problems)} bad records: {shown}{more}", where=where, cure="mend them, or --skip-bad")
    events.emit("data", f"left out {len(problems)} records of {where}: {shown}{more}", data={"skipped": len(problems)})
