"""Rung two: LoRA on a small real task, and whether it helped."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladderlm import engine, events
from ladderlm.apps.quickstart import training
from ladderlm.data import tasks
from ladderlm.data.records import read_records, split, write_records
from ladderlm.errors import UsageError
from ladderlm.evals import classify, linear
from ladderlm.evals.helped import did_it_help
from ladderlm.evals.intervals import bootstrap
from ladderlm.models import open_model
from ladderlm.types import Message, Record

HELD_OUT = 300
SHOTS = 8


def make_task(path: Path | None, seed: int) -> tasks.ClassTask:
    """The built-in task, or the class records in `path` with a tenth held out."""
    if path is None:
        return tasks.DocsMatch(seed=seed)
    records = read_records(path)
    train, test = split(records, 0.1, seed)
    if len(test) < 20:
        raise UsageError(f"only {len(test)} records would be held out", where=str(path), cure="give 200 or more")
    return tasks.ClassTask.of(path.stem, {"train": tuple(train), "test": tuple(test)})


def as_messages(task: tasks.ClassTask, records: Sequence[Record]) -> list[Record]:
    """The records as conversations, in exactly the words the evaluation uses."""
    made = []
    for record in records:
        turns = (*task.prompt(record).messages, Message.of("assistant", record["label"]))
        rows = [{"role": m.role, "content": m.text} for m in turns]
        made.append(dataclasses.replace(record, kind="messages", fields={"messages": rows}))
    return made


def measure(model: str, task: tasks.ClassTask, held: Sequence[Record], shots: Sequence[Record]) -> dict[str, Any]:
    """Per record 1 or 0 (zero-shot, and few-shot when `shots` are given), and the forgetting probe."""
    files = open_model(model)
    with engine.load(files) as loaded:
        judge = functools.partial(classify.classify, loaded, files.tokenizer, files.template, task, held)
        out: dict[str, Any] = {"zero_shot": judge().correct}
        if shots:
            out["few_shot"] = judge(examples=shots).correct
        out["probe"] = classify.choose(loaded, files.tokenizer, tasks.forgetting_probe()).correct
    return out


def tune(task: tasks.ClassTask, recipe: Path, work: Path, name: str, seed: int) -> dict[str, Any]:
    """Trains an adapter on the task's training records, in the very words the evaluation uses."""
    from ladderlm.train import finetune

    write_records(work / "finetune.jsonl", as_messages(task, task.records("train")))
    flags = {"data": str(work / "finetune.jsonl"), "out": name, "replace": True, "seed": seed}
    return training.run(finetune, "finetune", recipe, work, flags)


def before(model: str, task: tasks.ClassTask, seed: int) -> dict[str, Any]:
    """Scores that tuning has to beat: zero-shot, few-shot, the majority label, and words counted by a linear model."""
    train, held = task.records("train"), task.records("test")[:HELD_OUT]
    events.emit("finetune", f"{task.name}: {len(train)} records to train on, {len(held)} held out; measuring before")
    found = measure(model, task, held, classify.pick_examples(train, SHOTS, seed))
    majority = Counter(r["label"] for r in train).most_common(1)[0][0]
    counted = linear.tfidf_predictions(train, held)
    return {
        **found,
        "majority": [float(r["label"] == majority) for r in held],
        "tfidf": [float(r["label"] == p) for r, p in zip(held, counted, strict=True)],
        "rule": [float(task.rule(r) == r["label"]) for r in held] if isinstance(task, tasks.DocsMatch) else [],
        "labels": task.labels,
        "examples": [{"prompt": task.prompt(r).messages[-1].text, "label": r["label"]} for r in held[:5]],
    }


def after(model: str, task: tasks.ClassTask, before: dict[str, Any], seed: int) -> dict[str, Any]:
    """The tuned model on the same records, compared."""
    events.emit("finetune", "measuring after")
    return compare(before, measure(model, task, task.records("test")[:HELD_OUT], ()), seed)


def compare(before: dict[str, Any], after: dict[str, Any], seed: int) -> dict[str, Any]:
    """Every score with its 95 % interval, the paired differences to each rival, and what was forgotten."""
    rivals = {name: before[name] for name in ("majority", "tfidf", "zero_shot", "few_shot")}
    tuned = after["zero_shot"]
    rule = {"rule": before["rule"]} if before["rule"] else {}
    against = {name: did_it_help("accuracy", values, tuned, seed=seed) for name, values in rivals.items()}
    prompting = max(("zero_shot", "few_shot"), key=lambda name: sum(before[name]))
    return {
        "scores": {name: bootstrap(v, seed=seed).to_dict() for name, v in (rivals | {"tuned": tuned} | rule).items()},
        "differences": {name: h.difference.to_dict() for name, h in against.items()},
        "best_prompting": prompting,
        "verdict": str(against[prompting]),
        "above_all": all(h.verdict == "helped" for h in against.values()),
        "forgetting": did_it_help("the probe of general facts", before["probe"], after["probe"], seed=seed).to_dict(),
    }
