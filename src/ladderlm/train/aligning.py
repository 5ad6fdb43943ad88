"""What the alignments share: the two sides of the data, the loop's settings, and the curves of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ladderlm import store
from ladderlm.data.records import split
from ladderlm.data.tables import parse_columns, read_table
from ladderlm.errors import UsageError
from ladderlm.evals.report import Report
from ladderlm.train.derive import settled
from ladderlm.train.settings import AlignConfig, LoopConfig
from ladderlm.types import Record, Run

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 100
# A curve of the page: the figures of metrics.jsonl that are drawn in it, and how they are called there.
PANELS: Mapping[str, Mapping[str, str]] = {
    "reward": {"reward": "training", "judged": "judge"},
    "share of pairs that are ranked right": {"reward_accuracy": "training"},
    "kl to the reference": {"kl": "nats a token"},
    "entropy": {"entropy": "nats a token"},
    "length": {"length": "tokens of an answer"},
    "share of clipped tokens": {"clipped": "training"},
}


def two_sides(config: AlignConfig) -> tuple[list[Record], list[Record]]:
    """(train, held out)."""
    columns = parse_columns(config.columns)
    records = read_table(config.data, columns, config.licence).settled(config.skip_bad)
    if config.held_out:
        return records, read_table(config.held_out, columns, config.licence).settled(config.skip_bad)
    if len({r.id for r in records}) < 2:
        raise UsageError("one record cannot be split", where=config.data, cure="give more, or --held-out FILE")
    records, held = split(records, HELD_OUT_SHARE, config.seed)
    return records, held[:MOST_HELD_OUT]


def loop_config(config: AlignConfig, steps: int, accumulate: int = 1) -> LoopConfig:
    """`steps` are those that `config.epochs` make: taken where neither steps nor minutes are given."""
    if not (config.steps or config.minutes or config.epochs > 0):
        raise UsageError("epochs must be positive", where=f"epochs={config.epochs}")
    return LoopConfig(
        steps=config.steps or (0 if config.minutes else max(1, steps)), minutes=config.minutes, accumulate=accumulate,
        warmup=config.warmup, cooldown=config.cooldown, seed=config.seed, precision=precision(config),
        evaluate_every=config.evaluate_every, best=config.best,
    )  # fmt: skip


def precision(config: AlignConfig) -> str:
    """Of products. What is drawn by the engine is learnt from as exactly as it was drawn, unless told otherwise."""
    exact = config.precision == "auto" and config.objective in ("grpo", "ppo")
    return "fp32" if exact else settled(config.precision, config.device)


def panels(run: Run) -> Callable[[Report], None]:
    """Fills a report with a curve for everything in PANELS that was measured on the way."""

    def fill(report: Report) -> None:
        rows = store.read_jsonl(run.metrics)
        report.section("On the way")
        for name, figures in PANELS.items():
            lines = {label: _points(rows, key) for key, label in figures.items()}
            if lines := {label: points for label, points in lines.items() if points}:
                report.curve(name, lines, y=name)

    return fill


def _points(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
