"""GRPO on what can be checked: templated arithmetic, and answers in JSON that must meet a schema and be right.

The default model, LoRA, at most 15 minutes each. 500 problems are held out; no pair of numbers, and no name with its
age and city, is on both sides. The score is the share of its checks that a greedy answer passes.

Bars: at least 20 points gained on each.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.store import open_run, read_jsonl
from ladderlm.train import align
from ladderlm.train.settings import AlignConfig

HELD_OUT = 500
SUMS = ("What is {a} + {b}?", "How much is {a} + {b}?", "Ann has {a} coins and gets {b}. How many has she now?",
        "What do {a} and {b} make together?")  # fmt: skip
RESTS = ("What is {a} - {b}?", "How much is {a} - {b}?", "Ann has {a} coins and spends {b}. How many has she now?",
         "What is left of {a} without {b}?")  # fmt: skip
NAMES = [
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hugo", "Ines", "Jan", "Kira", "Liam", "Mona", "Noor", "Omar",
    "Pia", "Quinn", "Rosa", "Sam", "Tara",
]  # fmt: skip
CITIES = ["Oslo", "Lima", "Rome", "Cairo", "Paris", "Delhi", "Quito", "Tokyo", "Accra", "Sofia"]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "city"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "city": {"type": "string"}},
}  # fmt: skip


def arithmetic(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Problems to learn from, and to measure on: of other pairs of numbers, each in one form."""
    pairs = list(itertools.combinations_with_replacement(range(2, 40), 2))
    rng.shuffle(pairs)
    sides: list[list[dict[str, Any]]] = []
    for some, forms in ((pairs[HELD_OUT // 2 :], SUMS), (pairs[: HELD_OUT // 2], ())):
        rows = []
        for b, a in some:
            for sum_, rest in zip(forms or [rng.choice(SUMS)], RESTS if forms else [rng.choice(RESTS)], strict=True):
                rows.append({"prompt": sum_.format(a=a, b=b), "answer": str(a + b)})
                rows.append({"prompt": rest.format(a=a, b=b), "answer": str(a - b)})
        sides.append(rows)
    return sides[0], sides[1]


def in_json(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    asked = "Turn it into JSON (name, age, city)."
    rows = []
    for name, city in itertools.product(NAMES, CITIES):
        for age in rng.sample(range(7, 90), 8):
            text = f"{name} is {age} years old and lives in {city}."
            right = {"name": name, "age": age, "city": city}
            rows.append({"prompt": f"{text} {asked}", "answer": json.dumps(right), "schema": SCHEMA})
    rng.shuffle(rows)
    return rows[HELD_OUT:], rows[:HELD_OUT]


def learn(
    folder: Path, name: str, train: list[dict[str, Any]], held: list[dict[str, Any]], **changes: Any
) -> dict[str, Any]:
    for side, some in (("held", held), ("train", train)):
        (folder / f"{name}.{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    config = AlignConfig(
        data=str(folder / f"{name}.train.jsonl"), held_out=str(folder / f"{name}.held.jsonl"), objective="grpo",
        model=DEFAULT_MODEL, out=str(folder / name), **changes,
    )  # fmt: skip
    result = align.run(config)
    run = open_run(result.run)
    metrics = read_jsonl(run.metrics)
    shown = ("reward", "length", "kl", "entropy", "told_apart")
    return {
        "steps": result.steps, "seconds": round(result.seconds, 1), "reward": result.scores["helped"],
        "engine_gap": result.scores["engine_gap"],
        "answer_tokens": [result.scores["answer_tokens_before"], result.scores["answer_tokens"]],
        "course": {key: [round(row[key], 4) for row in metrics[:: max(1, len(metrics) // 20)]] for key in shown},
    }  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    changes: dict[str, Any] = {"minutes": 8.0, "lr": 6e-4, "threads": threads}
    held = HELD_OUT
    if minute:
        changes = {"steps": 1, "prompts": 2, "samples": 3, "max_tokens": 12, "threads": threads, "layers_trained": 2}
        held = 4
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, made, room in (("arithmetic", arithmetic, 20), ("json", in_json, 40)):
            train, unseen = made(random.Random(0))
            found[name] = learn(Path(scratch), name, train, unseen[:held], **{"max_tokens": room, **changes})
    bars = {
        f"{name}: at least 20 points gained on {held} unseen problems":
            found[name]["reward"]["after"]["mean"] - found[name]["reward"]["before"]["mean"] >= 0.2
        for name in found
    }  # fmt: skip
    return {"threads": threads, "model": DEFAULT_MODEL, **found} | ({} if minute else {"bars": bars})
