"""The climb: the records parted, the rungs tried in order, one table, and the lowest rung that suffices.

A rung suffices when no other is better beyond chance (paired, 95 %), when it beats the most frequent label beyond
chance, and, where a target was named, when it reaches that. None may.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladderlm import events, store
from ladderlm.apps.climb.rungs import RUNGS, Tried, Work, apart, climb_one
from ladderlm.config import option
from ladderlm.data.records import split, write_records
from ladderlm.data.tables import parse_columns, read_table
from ladderlm.errors import UsageError
from ladderlm.evals.ask import items_of, labels_of
from ladderlm.evals.helped import Helped, did_it_help
from ladderlm.evals.intervals import Interval, bootstrap
from ladderlm.evals.report import Report
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Record, Value

LEAST = 40  # records
USUAL = "most frequent label"


@dataclass(frozen=True, slots=True)
class ClimbConfig(Value):
    """What to climb on, with which model, and for how long."""

    data: str = option(help="a labelled file or table: text+label, prompt+completion, or messages")
    model: str = option(DEFAULT_MODEL, "the model to start from: a name, folder, or URL#model", short="-m")
    held_out: str = option("", "records to test on; else a part of the data is kept apart")
    columns: tuple[str, ...] = option((), "field=column of a table, such as text=review,label=stars")
    skip_bad: bool = option(False, "leave out rows that cannot be used, instead of stopping")
    only: tuple[str, ...] = option((), "a rung to try; may be repeated: " + ", ".join(RUNGS))
    target: float = option(0.0, "the score that suffices; 0: as good as the best rung, up to chance")
    minutes: float = option(12.0, "time for the search of a prompt and for each training, all in all")
    test: int = option(300, "most records to test on")
    shots: int = option(8, "examples that are shown")
    max_tokens: int = option(64, "longest answer where answers are written")
    max_cost: float | None = option(None, "the most that a hosted model may cost on each rung")
    out: str = option("climb", "name of what is trained: OUT-lora, OUT-full")
    apart: bool = option(True, "each rung in a process of its own, which tells its memory; --no-apart")
    seed: int = option(0, "seed of everything drawn")
    threads: int = option(0, "processor threads; 0: all")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class Rung(Value):
    """A row of the table. `gap`: from this rung to the best one."""

    tried: Tried
    score: Interval | None
    gap: Helped | None
    suffices: bool


@dataclass(frozen=True, slots=True)
class Climbed(Value):
    """`recommended` is the lowest rung that suffices, "" where none does; the page lies in the `run` folder."""

    run: str
    metric: str
    items: int
    rungs: tuple[Rung, ...]
    recommended: str
    sentence: str


def run(config: ClimbConfig) -> Climbed:
    """Climbs. A rung that cannot be tried here is told with its reason."""
    wanted = config.only or tuple(RUNGS)
    if unknown := [name for name in wanted if name not in RUNGS]:
        raise UsageError(f"no rung {unknown[0]!r}", cure="known: " + ", ".join(RUNGS))
    run_ = store.new_run("climb", {"settings": config.to_dict()})
    work = _prepare(config, run_.path)
    tried = []
    for rung in [name for name in RUNGS if name in wanted or name == USUAL]:
        events.emit("climb", rung)
        began = time.monotonic()
        found = apart(rung, work) if config.apart and rung != USUAL else climb_one(rung, work)
        tried.append(dataclasses.replace(found, minutes=(time.monotonic() - began) / 60))
        store.write_json(run_.path / "tried.json", [t.to_dict() for t in tried])
    climbed = judge(tried, run_.id, "accuracy" if work.labels else "F1 of words", config.target, config.seed)
    store.write_json(run_.path / "result.json", {"format": 1, **climbed.to_dict()})
    page(climbed, config).write(run_.path)
    return climbed


def _prepare(config: ClimbConfig, folder: Path) -> Work:
    """The three sides as files, the same for every rung: test first, then dev out of what is left."""
    columns = parse_columns(config.columns)
    records = _unlike(read_table(config.data, columns).settled(config.skip_bad))
    if config.held_out:
        train, test = records, _unlike(read_table(config.held_out, columns).settled(config.skip_bad))
    else:
        train, test = split(records, min(0.3, max(0.1, config.test / max(1, len(records)))), config.seed, by="id")
    if len(train) + len(test) < LEAST or len(test) < LEAST // 4:
        raise UsageError(f"only {len(train)} records and {len(test)} to test on", where=config.data,
                         cure=f"give {LEAST} or more")  # fmt: skip
    train, dev = split(train, min(0.3, max(0.05, 100 / len(train))), config.seed + 1, by="id")
    dev, test = dev[:100], test[: config.test]
    files: dict[str, Any] = {}
    for name, side in (("train", train), ("dev", dev), ("test", test)):
        files[name] = str(folder / f"{name}.jsonl")
        write_records(folder / f"{name}.jsonl", side)
    labels = labels_of(items_of([*train, *dev, *test]))
    events.emit("climb", f"{len(train):,} records to learn from, {len(dev)} to choose by, {len(test)} to test on")
    return Work(
        **files, model=config.model, out=config.out, labels=labels, shots=config.shots, minutes=config.minutes / 3,
        max_tokens=config.max_tokens, max_cost=config.max_cost, seed=config.seed, threads=config.threads,
    )  # fmt: skip


def _unlike(records: Sequence[Record]) -> list[Record]:
    """Each question once: one that stands on both sides would be known by heart."""
    seen: dict[str, Record] = {}
    for item, record in zip(items_of(records), records, strict=True):
        seen.setdefault(item.text, record)
    return list(seen.values())


def judge(tried: Sequence[Tried], run_id: str, metric: str, target: float = 0.0, seed: int = 0) -> Climbed:
    """The table, and the lowest rung that suffices."""
    done = [t for t in tried if t.scores]
    if not done:
        reasons = "; ".join(f"{t.rung}: {t.skipped}" for t in tried)
        raise UsageError(f"no rung could be tried: {reasons}")
    best = max(done, key=lambda t: sum(t.scores))
    usual = next((t for t in done if t.rung == USUAL), None)

    def row(t: Tried) -> Rung:
        if not t.scores:
            return Rung(t, None, None, False)
        behind = [o.rung for o in done if did_it_help(metric, t.scores, o.scores, seed=seed).verdict == "helped"]
        score = bootstrap(t.scores, seed=seed)
        reached = score.mean >= target if target else not behind
        above = usual is None or did_it_help(metric, usual.scores, t.scores, seed=seed).verdict == "helped"
        gap = did_it_help(metric, t.scores, best.scores, seed=seed)
        return Rung(t, score, gap, reached and above and t.rung != USUAL)

    rungs = tuple(row(t) for t in tried)
    enough = next((r for r in rungs if r.suffices), None)
    name = enough.tried.rung if enough else ""
    return Climbed(run_id, metric, len(best.scores), rungs, name, _sentence(enough, best, target))


def _sentence(enough: Rung | None, best: Tried, target: float) -> str:
    if enough is None:
        said = f"no rung reaches {target:g}" if target else "no rung beats the most frequent label"
        return f"Nothing suffices: {said}. The best was {best.rung}."
    t, score = enough.tried, enough.score
    if target:
        return f"{t.rung} suffices: {score}, at least {target:g}."
    if t.rung == best.rung:
        return (
            f"{t.rung} is the lowest rung that suffices: {score}, better than every rung below it, and none is better."
        )
    return f"{t.rung} is the lowest rung that suffices: {score}; no rung above it is better beyond chance."


def rows(climbed: Climbed) -> list[tuple[str, ...]]:
    """The table's cells."""
    found: list[tuple[str, ...]] = []
    for r in climbed.rungs:
        t = r.tried
        if r.score is None:
            found.append((t.rung, "not tried", "", "", "", "", "", t.skipped))
            continue
        gap = (
            f"{r.gap.difference.mean:+.3f} [{r.gap.difference.low:+.3f}, {r.gap.difference.high:+.3f}]" if r.gap else ""
        )
        found.append((
            t.rung, f"{r.score.mean:.3f} [{r.score.low:.3f}, {r.score.high:.3f}]", gap, f"{t.minutes:.1f}",
            f"{t.memory_mb:,.0f}" if t.memory_mb else "–", f"{t.money:.4g}", size_of(t.ship_bytes),
            "yes" if r.suffices else "no",
        ))  # fmt: skip
    return found


COLUMNS = ("rung", "score", "to the best", "minutes", "memory MB", "money", "to ship", "suffices")


def size_of(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def page(climbed: Climbed, config: ClimbConfig) -> Report:
    report = Report(f"The climb on {Path(config.data).name}", climbed.sentence)
    caption = (
        f"{climbed.metric} on {climbed.items} records that no rung has seen, with 95 % intervals; the way to the best "
        "rung is paired. A process's memory is its peak; money is what a hosted model asked."
    )
    report.section("The rungs").table(COLUMNS, rows(climbed), caption)
    made = [(r.tried.rung, r.tried.made) for r in climbed.rungs if r.tried.made]
    report.section("What each used").samples(("rung", "prompt or model"), made)
    return report
