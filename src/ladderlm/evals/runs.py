"""`runs compare`: two finished runs beside each other, without running a model again.

Both measured held-out items before and after. Where the items are the same, the models are compared item by item;
where they are not, their figures stand side by side and nothing is concluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ladderlm import store
from ladderlm.errors import LadderError
from ladderlm.evals.helped import Helped, Scored, did_it_help
from ladderlm.evals.intervals import Interval, bootstrap_ratio
from ladderlm.evals.outcome import Outcome, Stage, chain, chain_section, load
from ladderlm.evals.report import Report
from ladderlm.types import Run, Value

UNSHOWN = ("resume", "replace", "json", "threads")


@dataclass(frozen=True, slots=True)
class Figure(Value):
    """One figure of both models, and `change` from the first to the second on the items that both measured."""

    metric: str
    first: Interval | None
    second: Interval | None
    change: Helped | None


@dataclass(frozen=True, slots=True)
class Compared(Value):
    """Which is better in one sentence; `settings` that differ and `cost`, as (name, first, second); figures."""

    runs: tuple[str, str]
    sentence: str
    settings: tuple[tuple[str, Any, Any], ...]
    figures: tuple[Figure, ...]
    cost: tuple[tuple[str, float, float], ...]


def compare(first: Run, second: Run) -> tuple[Compared, Report]:
    """Is the second run's model better than the first's? NotFound for a run without before and after."""
    a, b = load(first), load(second)
    figures = tuple(_figure(metric, a, b) for metric in _metrics(a, b))
    cost = tuple((name, a.cost.get(name, math.nan), b.cost.get(name, math.nan)) for name in {**a.cost, **b.cost})
    found = Compared((first.id, second.id), _sentence(figures, a, b), _settings(first, second), figures, cost)
    return found, _page(found, a, b)


def _metrics(a: Outcome, b: Outcome) -> list[str]:
    sides = [*b.after.task, *a.after.task, *b.after.kept, *a.after.kept]
    return list(dict.fromkeys(scored.metric for scored in sides))


def _figure(metric: str, a: Outcome, b: Outcome) -> Figure:
    one, two = a.after.find(metric), b.after.find(metric)
    sides = [bootstrap_ratio(s.values, s.per) if s else None for s in (one, two)]
    return Figure(metric, sides[0], sides[1], _paired(one, two, b.seed) if one and two else None)


def _paired(one: Scored, two: Scored, seed: int) -> Helped | None:
    """On the items that both have, in the second's order; items that a run has twice are told apart by their place."""
    known = dict(zip(_numbered(one.items), one.values, strict=True))
    rows = [
        (known[name], value, size)
        for name, value, size in zip(_numbered(two.items), two.values, two.per, strict=True)
        if name in known
    ]
    if not rows:
        return None
    before, after, sizes = zip(*rows, strict=True)
    return did_it_help(two.metric, before, after, higher_is_better=two.higher_is_better, seed=seed, per=sizes)


def _numbered(items: tuple[str, ...]) -> list[tuple[str, int]]:
    seen: dict[str, int] = {}
    out = []
    for item in items:
        seen[item] = seen.get(item, -1) + 1
        out.append((item, seen[item]))
    return out


def _sentence(figures: tuple[Figure, ...], a: Outcome, b: Outcome) -> str:
    first = next((f.change for f in figures if f.change and b.task and f.metric == b.task[0].metric), None)
    if first is None:
        return "They were measured on different items: nothing can be said of which is better."
    word = {"helped": "is better than", "harmed": "is worse than"}.get(first.verdict)
    if word is None:
        return f"There is no evidence that {b.model} differs from {a.model}: {first.change}."
    return f"{b.model} {word} {a.model}: {first.change}."


def _settings(first: Run, second: Run) -> tuple[tuple[str, Any, Any], ...]:
    one, two = (_told(run) for run in (first, second))
    names = [n for n in dict.fromkeys([*one, *two]) if n not in UNSHOWN and one.get(n) != two.get(n)]
    return tuple((name, one.get(name), two.get(name)) for name in names)


def _told(run: Run) -> Mapping[str, Any]:
    stored = store.read_json(run.config)
    return {"kind": stored.get("kind"), **stored.get("settings", {})}


def _page(found: Compared, a: Outcome, b: Outcome) -> Report:
    report = Report(f"{found.runs[0]} and {found.runs[1]}", found.sentence)
    rows = [
        (f.metric, _shown(f.first), _shown(f.second), _shown(f.change.difference, "+") if f.change else None,
         {"helped": "better", "harmed": "worse"}.get(f.change.verdict, f.change.verdict) if f.change else None,
         f.change.items if f.change else None)
        for f in found.figures
    ]  # fmt: skip
    caption = "95 % intervals; the change is paired, on the items that both runs measured."
    report.section("Figures").table(("figure", a.model, b.model, "change", "verdict", "items"), rows, caption)
    if found.settings:
        shown = [(name, str(x), str(y)) for name, x, y in found.settings]
        report.section("Settings that differ").table(("setting", a.model, b.model), shown)
    stages = _stages(found, a, b)
    if len(stages) > 2:
        chain_section(report, stages)
    else:
        said = {s.prompt: s.answer for s in a.after.samples}
        pairs = [(s.prompt, s.reference, said[s.prompt], s.answer) for s in b.after.samples if s.prompt in said]
        if pairs:
            report.section("Samples").samples(("prompt", "reference", a.model, b.model), pairs)
    rows_cost = [(name.replace("_", " "), x, y) for name, x, y in found.cost]
    report.section("Cost").table(("what", a.model, b.model), rows_cost)
    return report


def _stages(found: Compared, a: Outcome, b: Outcome) -> list[Stage]:
    """Base, first, second: where the second came from the first's model, or both from one model."""
    earlier = b.parent_run
    while earlier:
        if earlier == found.runs[0]:
            return chain(b)
        try:
            earlier = load(store.open_run(earlier)).parent_run
        except LadderError:
            break
    if a.parent == b.parent and a.parent_run == b.parent_run:
        return [Stage(a.parent, a.before), Stage(a.model, a.after), Stage(b.model, b.after)]
    return []


def _shown(interval: Interval | None, sign: str = "") -> str | None:
    if interval is None:
        return None
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
