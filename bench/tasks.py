"""Three real tasks: what the default model knows unprompted, from examples, and after being tuned for a few minutes.

Feelings of film reviews (SST-2, macro F1; labels by likelihood), names in short messages (WNUT 2017, micro F1 of
entities) and following instructions (ROUGE-L), each written or chosen by the engine on the same unseen items: asked as
it comes, after eight solved examples, and tuned by LoRA, prompt tuning and prefix tuning, which start from words that
say what is wanted; the reviews also by QLoRA, as many steps as LoRA. Intervals are bootstrapped over items, 95 %.

Bars, on each task: LoRA lies above zero-shot and few-shot with intervals that do not overlap; prompt and prefix tuning
lie above zero-shot, with the whole interval of the paired difference. On reviews the paired interval of QLoRA less LoRA
lies within 2 points.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.data.asking import Asking
from ladderlm.data.records import read_records, write_records
from ladderlm.data.tables import read_table
from ladderlm.errors import NotFound
from ladderlm.evals import answers, metrics
from ladderlm.evals.ask import Asker, Item, Prompt, pick
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.train import finetune
from ladderlm.train.settings import SOFT, FinetuneConfig
from ladderlm.types import Record

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data"))
FEELINGS = {"0": "negative", "1": "positive"}
SHOTS, ROUNDS = 8, 2000
WITHIN = 0.02  # of LoRA's score lies QLoRA's
# method -> what differs from its defaults
TUNED: dict[str, dict[str, Any]] = {
    "lora": {}, "prompt": {"batch_tokens": 512}, "prefix": {"batch_tokens": 512},
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Records on both sides, and F1 or ROUGE-L of what was said: the figure of items drawn by their numbers."""

    train: list[Record]
    test: list[Record]
    labels: tuple[str, ...]
    words: str  # what is wanted
    most: int  # tokens of an answer
    score: Callable[[list[Record], list[str]], Callable[[np.ndarray], float]]
    four_bits: bool = False  # whether the base is tuned in 4 bits too
    minutes: float = 4.0  # of each tuning


def source(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        raise NotFound("no such data", where=str(path), cure="set LADDERLM_DATA to the folder with eval/ and instruct/")
    return path


def feelings(folder: Path, test: int) -> Task:
    sides = {}
    for side, name in (("train", "eval/sst2-train.tsv"), ("test", "eval/sst2-dev.tsv")):
        rows = [line.rsplit("\t", 1) for line in source(name).read_text(encoding="utf-8").splitlines() if "\t" in line]
        made = [{"text": text, "label": FEELINGS[label]} for text, label in rows if label in FEELINGS]
        sides[side] = drawn(folder / f"sst2-{side}.jsonl", made)
    # All of them: the more, the narrower the interval between two arms.
    some = sides["test"] if test >= 300 else sides["test"][:test]
    return Task(
        sides["train"],
        some,
        tuple(sorted(FEELINGS.values())),
        "Is this film review positive or negative?",
        0,
        macro_f1,
        four_bits=True,
    )


def names(folder: Path, test: int) -> Task:
    sides = []
    for name in ("eval/wnut17/wnut17train.conll", "eval/wnut17/emerging.dev.conll"):
        records = [row.record for row in read_table(source(name)).rows]
        random.Random(0).shuffle(records)
        sides.append(records)
    named = [r for r in sides[0] if r["spans"]]
    # Most messages name nothing. Of many of them virtual tokens learn first to say that always.
    bare = [r for r in sides[0] if not r["spans"]][: len(named) // 4]
    train = [*named, *bare]
    random.Random(0).shuffle(train)
    words = "List each person, place, group, company, product and work that this message names, with its kind."
    return Task(train, sides[1][:test], (), words, 48, micro_f1, minutes=10.0)


def instructions(folder: Path, test: int) -> Task:
    rows = json.loads(source("instruct/llms-from-scratch-instructions.json").read_text(encoding="utf-8"))
    records = drawn(folder / "instructions.jsonl", rows)
    return Task(records[test:], records[:test], (), "Answer the instruction briefly, with nothing else.", 64, rouge)


TASKS: dict[str, Callable[[Path, int], Task]] = {
    "feelings (SST-2), macro F1": feelings,
    "names (WNUT 2017), micro F1": names,
    "instructions, ROUGE-L": instructions,
}


def drawn(path: Path, rows: list[dict[str, Any]]) -> list[Record]:
    """The rows as records, shuffled."""
    random.Random(0).shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_records(path)


def macro_f1(test: list[Record], said: list[str]) -> Callable[[np.ndarray], float]:
    right, told = np.array([r["label"] for r in test]), np.array(said)

    def figure(some: np.ndarray) -> float:
        a, b = right[some], told[some]
        each = [2 * np.sum((a == x) & (b == x)) / max(1, np.sum(a == x) + np.sum(b == x)) for x in FEELINGS.values()]
        return float(np.mean(each))

    return figure


def micro_f1(test: list[Record], said: list[str]) -> Callable[[np.ndarray], float]:
    counts = []
    for record, text in zip(test, said, strict=True):
        wanted = [(s["label"], record["text"][s["start"] : s["end"]]) for s in record["spans"]]
        found = answers.told_spans(text)
        both = answers.f1(found, wanted) * (len(found) + len(wanted))  # twice what they have in common
        counts.append((both, len(found) + len(wanted)))
    over, under = np.array(counts, dtype=float).T
    return lambda some: float(over[some].sum() / max(1.0, under[some].sum()))


def rouge(test: list[Record], said: list[str]) -> Callable[[np.ndarray], float]:
    each = np.array(metrics.rouge(said, [Asking().answer(r) for r in test])["rougeL"])
    return lambda some: float(each[some].mean())


def told(task: Task, asking: Asking, model: str, shots: int) -> list[str]:
    """What `model` answers to the test items."""
    items = [Item(r.id, asking.prompt(r), asking.answer(r)) for r in task.test]
    known = [Item(r.id, asking.prompt(r), asking.answer(r)) for r in task.train[:200]]
    prompt = Prompt(shots=pick(known, shots, random.Random(0), task.labels) if shots else ())
    with Asker(model, task.labels, tokens=task.most) as asker:
        return [said.answer for said in asker.ask(prompt, items, "answers")]


def learn(task: Task, folder: Path, threads: int, share: float) -> dict[str, Any]:
    """`share` of the task's minutes is what each tuning has."""
    minutes, asking = share * task.minutes, Asking.of([*task.train, *task.test])
    write_records(folder / "train.jsonl", task.train)
    write_records(folder / "held.jsonl", task.train[-20:])
    said = {"zero-shot": told(task, asking, DEFAULT_MODEL, 0), "few-shot": told(task, asking, DEFAULT_MODEL, SHOTS)}
    spent: dict[str, Any] = {}
    arms = [*TUNED, *(["qlora"] if task.four_bits else [])]
    for method in arms:
        out = folder / method
        length: dict[str, Any] = {"steps": spent["lora"]["steps"]} if method == "qlora" else {"minutes": minutes}
        result = finetune.run(FinetuneConfig(
            data=str(folder / "train.jsonl"), held_out=str(folder / "held.jsonl"), out=str(out), method=method,
            threads=threads, skip_bad=True, cut=True, init_text=task.words if method in SOFT else "", **length,
            **TUNED.get(method, {}),
        ))  # fmt: skip
        spent[method] = {"steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 1)}
        said[method] = told(task, asking, f"{DEFAULT_MODEL}+{out}", 0)
    figures = {arm: task.score(task.test, words) for arm, words in said.items()}
    rows = np.random.default_rng(0).integers(0, len(task.test), (ROUNDS, len(task.test)))
    every = np.arange(len(task.test))
    over = {arm: np.array([figure(some) for some in rows]) for arm, figure in figures.items()}
    found = {arm: interval(figure(every), over[arm]) for arm, figure in figures.items()}
    gains = {
        arm: interval(figures[arm](every) - figures["zero-shot"](every), over[arm] - over["zero-shot"])
        for arm in arms
    }  # fmt: skip
    told_apart: dict[str, Any] = {}
    if task.four_bits:
        less = figures["qlora"](every) - figures["lora"](every), over["qlora"] - over["lora"]
        told_apart = {"qlora_less_lora": interval(*less)}
    plain = {"items": len(task.test), "minutes_each": minutes, "scores": found, "above_zero_shot": gains}
    return {**plain, **told_apart, "training": spent}


def interval(value: float, drawn: Sequence[float] | np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    test, share = (6, 0.005) if minute else (300, 1.0)
    found, bars = {}, {}
    with tempfile.TemporaryDirectory() as data:  # all of them first: a file that is missing is known at once
        made = {name: make(Path(data), test) for name, make in TASKS.items()}
    for name, task in list(made.items())[: 1 if minute else None]:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = learn(task, Path(scratch), threads, share)
        scores, gains = found[name]["scores"], found[name]["above_zero_shot"]
        bars[f"{name}: LoRA above zero-shot and few-shot, the intervals apart"] = all(
            scores["lora"]["low"] > scores[arm]["high"] for arm in ("zero-shot", "few-shot")
        )
        bars[f"{name}: prompt and prefix tuning above zero-shot"] = all(
            gains[arm]["low"] > 0 for arm in ("prompt", "prefix")
        )
        if apart := found[name].get("qlora_less_lora"):
            bars[f"{name}: QLoRA within {100 * WITHIN:g} points of LoRA"] = (
                -WITHIN < apart["low"] <= apart["high"] < WITHIN
            )
    plain = {"threads": threads, "model": DEFAULT_MODEL, "tasks": found}
    return plain if minute else {**plain, "bars": bars}
