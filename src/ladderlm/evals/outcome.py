"""What a run's page tells: before and after on held-out items, what was forgotten, samples side by side, the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.errors import FormatError, NotFound
from ladderlm.evals.helped import Helped, Scored, compare_scored
from ladderlm.evals.intervals import bootstrap_ratio
from ladderlm.evals.report import Report
from ladderlm.types import Run, Value

FILE = "outcome.json"
FIT = "nats a token by which the right answer is likelier than another's"


@dataclass(frozen=True, slots=True)
class Sample(Value):
    """What was asked and, where it is known, what a good answer is; and what a model said."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True)
class Measured(Value):
    """A model as it was at one moment: figures of the `task` (the first decides), figures of what it should have
    `kept`, and samples."""

    task: tuple[Scored, ...] = ()
    kept: tuple[Scored, ...] = ()
    samples: tuple[Sample, ...] = ()

    def find(self, metric: str) -> Scored | None:
        return next((s for s in (*self.task, *self.kept) if s.metric == metric), None)


@dataclass(frozen=True, slots=True)
class Outcome(Value):
    """A run's before and after. `parent_run` made the model it began with, where that is known; `cost` is in the units
    that its names end with."""

    model: str
    parent: str
    parent_run: str
    before: Measured
    after: Measured
    cost: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def task(self) -> list[Helped]:
        return _pairs(self.before.task, self.after.task, self.seed)

    @property
    def kept(self) -> list[Helped]:
        return _pairs(self.before.kept, self.after.kept, self.seed)

    @property
    def verdict(self) -> str:
        return found[0].verdict if (found := self.task) else "no evidence"

    @property
    def sentence(self) -> str:
        """Helped, harmed or no evidence, in figures; and what it cost elsewhere."""
        if not (found := self.task):
            return "Nothing was measured before and after."
        said = [str(found[0])]
        said += [f"But of {h.change}: harmed." for h in found[1:] if h.verdict == "harmed"]
        fits = next((h for h in found if h.metric == FIT), None)
        if found[0].verdict == "helped" and fits and fits.verdict == "no evidence":
            said.append("There is no evidence that its answers fit their own questions better: it may be form alone.")
        lost = [h for h in self.kept if h.verdict == "harmed"]
        if lost:
            said.append("It forgot: " + "; ".join(h.change for h in lost) + ".")
        elif self.kept:
            said.append("There is no evidence that it forgot anything.")
        return " ".join(said)

    def scores(self) -> dict[str, Any]:
        """What a lineage keeps of it."""
        found = {"verdict": self.verdict, "helped": self.task[0].to_dict() if self.task else None}
        return found | {"forgetting": {h.metric: h.to_dict() for h in self.kept}}

    def save(self, run: Run) -> None:
        data = {"format": 1, "verdict": self.verdict, "sentence": self.sentence, **self.to_dict()}
        store.write_json(run.path / FILE, data)


def load(run: Run) -> Outcome:
    """The outcome of a finished run. NotFound where it has none."""
    path = run.path / FILE
    if not path.exists():
        cure = "runs that were made by an older version, or did not end, have none"
        raise NotFound(f"the run {run.id} has no before and after", where=str(path), cure=cure)
    return read(path)


def read(path: Path) -> Outcome:
    data = store.read_json(path)
    if not isinstance(data, dict) or data.get("format") != 1:
        raise FormatError("not a run's outcome", where=str(path))
    told = ("format", "verdict", "sentence")
    return Outcome.from_dict({name: value for name, value in data.items() if name not in told})


def _pairs(before: Sequence[Scored], after: Sequence[Scored], seed: int) -> list[Helped]:
    return [compare_scored(a, b, seed) for a, b in zip(before, after, strict=True)]


# --- The chain of models a run stands in --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """A model on the way, as it was measured."""

    name: str
    measured: Measured


def chain(outcome: Outcome) -> list[Stage]:
    """From the first model that a run here began with to this one: base, instructed, aligned."""
    runs, seen = [outcome], {outcome.parent_run}
    while runs[0].parent_run:
        try:
            earlier = load(store.open_run(runs[0].parent_run))
        except (NotFound, FormatError):
            break
        runs.insert(0, earlier)
        if earlier.parent_run in seen:
            break
        seen.add(earlier.parent_run)
    return [Stage(runs[0].parent, runs[0].before), *(Stage(r.model, r.after) for r in runs)]


def chain_section(report: Report, stages: Sequence[Stage]) -> None:
    """The models in columns: every figure with its interval, and what each said to the same prompts."""
    names = [stage.name for stage in stages]
    metrics = dict.fromkeys(
        s.metric for stage in reversed(stages) for s in (*stage.measured.task, *stage.measured.kept)
    )
    rows = []
    for metric in metrics:
        found = [stage.measured.find(metric) for stage in stages]
        last = next(s for s in reversed(found) if s is not None)
        same = [s if s is not None and s.items == last.items else None for s in found]
        rows.append([metric, *(_interval(s) if s else None for s in same)])
    report.section("The chain", "The same figures of each model on the way, with 95 % intervals; – where not measured.")
    report.table(["figure", *names], rows)
    said = [{s.prompt: s.answer for s in stage.measured.samples} for stage in stages]
    shared = [p for p in said[-1] if sum(p in s for s in said) > 1]
    if shared:
        report.samples(["prompt", *names], [[p, *(s.get(p, "–") for s in said)] for p in shared])


def _interval(scored: Scored) -> str:
    found = bootstrap_ratio(scored.values, scored.per)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


# --- The page -----------------------------------------------------------------------------------------------------


def fill(report: Report, outcome: Outcome) -> None:
    """The sections: did it help, what was forgotten, the chain, samples, cost."""
    report.section("Did it help?", f"**{outcome.verdict.capitalize()}.** {outcome.sentence}")
    rows = [_row("held out", h) for h in outcome.task] + [_row("forgetting", h) for h in outcome.kept]
    if rows:
        caption = "95 % intervals over items; the change is paired, item by item."
        report.table(("on", "figure", "before", "after", "change", "verdict", "items"), rows, caption)
    stages = chain(outcome)
    if len(stages) > 2:
        chain_section(report, stages)
    before = {(s.prompt, s.reference): s.answer for s in outcome.before.samples}
    pairs = [(s.prompt, s.reference, before.get((s.prompt, s.reference), ""), s.answer) for s in outcome.after.samples]
    if pairs:
        report.section("Samples").samples(("prompt", "reference", "before", "after"), pairs)
    if outcome.cost:
        shown = [(name.replace("_", " "), value) for name, value in outcome.cost.items()]
        report.section("Cost").table(("what", "how much"), shown)


def _row(where: str, h: Helped) -> tuple[Any, ...]:
    sides = (f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (h.before, h.after))
    d = h.difference
    return (where, h.metric, *sides, f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", h.verdict, h.items)
