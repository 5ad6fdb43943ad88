"""`ladderlm pretrain`, `finetune`, `align`, `plan` and `scaling`, which foretell pretrainings."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.models import size
from ladderlm.errors import MissingExtra
from ladderlm.train.settings import AlignConfig, FinetuneConfig, PlanConfig, PretrainConfig, ScalingConfig

if TYPE_CHECKING:
    from ladderlm.train.planned import Plan


def pretrain(argv: list[str]) -> int:
    return train("pretrain", parse("pretrain", PretrainConfig, argv, description="Pretrains a model."))


def finetune(argv: list[str]) -> int:
    config = parse("finetune", FinetuneConfig, argv, description="Tunes a model on records.")
    if (config.show or config.check) and not config.resume:
        status = look(config)
        if config.check:
            return status
    return hosted(config) if config.at else train("finetune", config)


def hosted(config: FinetuneConfig) -> int:
    """Tunes a model where it is; torch is not needed."""
    from ladderlm.apps.hosted import run

    with show.progress():
        result = run(config)
    show.emit_json(result.to_dict()) if config.json else print(result.model)
    return 0


def look(config: FinetuneConfig) -> int:
    """Prints records as the model reads them, and what is to be known of the data. 1 when rows are bad."""
    _use_torch()
    from ladderlm.train.finetune import look as looked_at

    with show.progress():
        material, shown = looked_at(config)
    show.pieces(shown, to_stdout=config.check and not config.json)
    if config.check:
        bad = [row._asdict() for row in material.bad]
        if config.json:
            show.emit_json({"task": material.task.name, "lengths": material.lengths.to_dict(), "bad": bad,
                            "notes": list(material.notes), "held_out": len(material.held)})  # fmt: skip
        else:
            print("\n".join([f"{material.task.name}: {material.lengths}", *material.notes]))
            show.table([(f"{b.file}:{b.line}", b.reason) for b in material.bad], ("row", "why it is bad"))
    return int(bool(material.bad) and not config.skip_bad)


def align(argv: list[str]) -> int:
    return train("align", parse("align", AlignConfig, argv, description="Aligns a model with what is preferred."))


def plan(argv: list[str]) -> int:
    about = "What a pretraining with these settings will take: put this verb in the place of pretrain."
    config = parse("plan", PlanConfig, argv, "pretrain", about)
    _use_torch()
    with show.progress():
        made = importlib.import_module("ladderlm.train.plan").run(config)
    if config.json:
        show.emit_json(made.to_dict())
        return 0
    show.table(_rows(made), ("what", "foretold"))
    for note in made.notes:
        print(note)
    return 0


def _rows(plan: Plan) -> list[tuple[str, str]]:
    memory = dict(plan.memory)
    peak = memory.pop("peak")
    rows = [
        ("parameters", f"{plan.parameters:,}"),
        ("tokens", f"{plan.tokens:,}"),
        ("steps", f"{plan.steps:,}"),
        *(() if plan.epochs is None else (("times the data is seen", f"{plan.epochs:.2f}"),)),
        ("time", lasting(plan.seconds)),
        ("CPU time, all threads", lasting(plan.cpu_seconds)),
        ("tokens a second", f"{plan.tokens_per_second:,.0f}"),
        ("of the machine's speed", f"{plan.mfu:.1%}"),
        ("operations", f"{plan.flops:.2e}"),
        *(() if plan.cost is None else (("cost", f"{plan.cost:,.2f}"),)),
        ("memory, by which the program grows", size(peak)),
        *((f"  {name}", size(value)) for name, value in memory.items() if value),
        *((("the program itself", size(int(plan.calibration["program"]))),) if plan.calibration else ()),
        *(() if plan.available is None else (("memory free now", size(plan.available)),)),
        ("disk", size(plan.disk)),
    ]
    return rows


def scaling(argv: list[str]) -> int:
    about = "How the loss falls with size and tokens: a sweep of small runs, a law, and what larger runs will give."
    config = parse("scaling", ScalingConfig, argv, description=about)
    _use_torch()
    with show.progress():
        found = importlib.import_module("ladderlm.train.scaling").run(config)
    if config.json:
        show.emit_json(found.to_dict())
        return 0
    law = found.law
    print(f"bits per byte = {law.e:.4g} + {law.a:.4g} / N^{law.alpha:.3f} + {law.b:.4g} / D^{law.beta:.3f}")
    rows = [(f"{p.parameters:,}", f"{p.tokens:,}", f"{p.loss:.4f}", f"{p.low:.4f} to {p.high:.4f}")
            for p in found.predictions]  # fmt: skip
    show.table(rows, ("parameters", "tokens", "foretold", "95 % interval"))
    print(f"{found.folder}/report.md")
    return 0


def lasting(seconds: float) -> str:
    """ "42 s", "12 min", "3.5 h"."""
    for unit, many, least in (("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * many:
            return f"{seconds / many:.1f} {unit}"
    return f"{seconds:.1f} s"


def _use_torch() -> None:
    # Waiting threads sleep: spinning ones starve whatever else runs on the machine, and themselves. Read at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtra("torch", "train") from None


def train(verb: str, config: Any) -> int:
    """Runs ladderlm.train.VERB and prints its result; of the processes that torchrun started, one speaks."""
    _use_torch()
    run = importlib.import_module(f"ladderlm.train.{verb}").run
    first = os.environ.get("RANK", "0") == "0"
    with show.progress() if first else contextlib.nullcontext():
        result = run(config)
    if not first:
        return 0
    if config.json:
        show.emit_json(result.to_dict())
    else:
        print(result.model)
    return 0
