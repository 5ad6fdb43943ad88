"""What was expected of a run, kept until it is known what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.errors import FormatError, NotFound
from ladderlm.train.derive import TOKENS_PER_PARAMETER
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Value

FORMAT = 1
LEAST_SECONDS = 60  # a shorter run is not compared, unless it was planned
FIRST_SECONDS = 30  # of a run without a plan, from which the rest is predicted
# Settings that change neither time nor memory.
BESIDE = ("out", "licence", "resume", "replace", "json", "seed", "keep", "checkpoint_minutes", "rollbacks", "spike")


@dataclass(frozen=True, slots=True)
class Plan(Value):
    """What a run will take. Bytes and seconds; `seconds` are those of the loop, `cpu_seconds` of all threads in sum.

    `memory`: bytes by part, and "peak": by how much the process grows. `calibration`: what the figures rest on, with
    the bytes of the "program" before it grows.
    `epochs` is None where no data was named, `cost` where no price was.
    """

    parameters: int
    tokens: int
    steps: int
    seconds: float
    cpu_seconds: float
    memory: Mapping[str, int]
    disk: int
    flops: float
    tokens_per_second: float
    mfu: float
    available: int | None = None
    epochs: float | None = None
    cost: float | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.available is None or self.memory["peak"] <= self.available

    def noted(self, notes: Sequence[str]) -> Plan:
        return dataclasses.replace(self, notes=tuple(notes))


def best_split(flops: float) -> tuple[float, float]:
    """(parameters, tokens) that spend so many operations best: 20 tokens a parameter (Hoffmann et al. 2022)."""
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return parameters, TOKENS_PER_PARAMETER * parameters


# --- Kept in the workspace ----------------------------------------------------------------------------------------


def plan_path(config: PretrainConfig) -> Path:
    """Where the plan of a run with these settings lies."""
    names = [f.name for f in dataclasses.fields(PretrainConfig) if f.name not in BESIDE]
    key = json.dumps([getattr(config, name) for name in names])
    return store.home() / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def keep_plan(config: PretrainConfig, plan: Plan) -> None:
    store.write_json(plan_path(config), {"format": FORMAT, "plan": plan.to_dict()})


def kept_plan(config: PretrainConfig) -> Plan | None:
    """The plan that was made of a run with these settings, if there is a sound one."""
    try:
        return Plan.from_dict(store.read_json(plan_path(config))["plan"])
    except (NotFound, FormatError, KeyError, TypeError):
        return None


# --- What came of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanOutcome(Value):
    """What a run was predicted to take and took; `error`: by what share the prediction was too high.

    `source`: what the prediction rests on. Names: "seconds", "cpu_seconds", "memory" (bytes).
    """

    source: str
    predicted: Mapping[str, float]
    measured: Mapping[str, float]

    @property
    def error(self) -> dict[str, float]:
        return {name: value / self.measured[name] - 1 for name, value in self.predicted.items()}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, predicted, measured, error), for people."""
        shown = {"seconds": ("seconds", 1.0), "cpu_seconds": ("CPU seconds", 1.0), "memory": ("memory, MB", 1e-6)}
        out = []
        for name, error in self.error.items():
            said, scale = shown[name]
            foretold, found = (f"{each[name] * scale:,.1f}" for each in (self.predicted, self.measured))
            out.append((said, foretold, found, f"{error:+.1%}"))
        return out


def outcome(plan: Plan, steps: int, measured: Mapping[str, float | None]) -> PlanOutcome | None:
    """A plan beside what a run of so many steps took; what was not measured is left out."""
    share = steps / max(1, plan.steps)
    expected = {"seconds": plan.seconds * share, "cpu_seconds": plan.cpu_seconds * share, "memory": plan.memory["peak"]}
    return _outcome("a plan made before", expected, measured)


def outcome_of_first(
    rows: Sequence[Mapping[str, Any]], memory: float | None, measured: Mapping[str, float | None]
) -> PlanOutcome | None:
    """The whole of a run without a plan, beside what its first half minute and the arithmetic foretold.

    `rows` are its metrics, `memory` the bytes worked out. None for a run that was short or went on from another's.
    """
    if not rows or (measured.get("seconds") or 0) < LEAST_SECONDS or rows[0]["step"] != 1:
        return None
    ends = [row["seconds"] for row in rows]
    first = [b - a for a, b in itertools.pairwise(ends) if b <= FIRST_SECONDS]
    if len(first) < 3:
        return None
    expected = {"seconds": ends[0] + statistics.median(first) * (len(rows) - 1), "memory": memory}
    return _outcome(f"its first {len(first) + 1} steps", expected, measured)


def _outcome(
    source: str, expected: Mapping[str, float | None], measured: Mapping[str, float | None]
) -> PlanOutcome | None:
    known = {name: value for name, value in measured.items() if value and expected.get(name)}
    if not known:
        return None
    return PlanOutcome(source, {name: expected[name] or 0.0 for name in known}, known)
