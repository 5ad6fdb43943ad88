"""GRPO on what can be checked: templated arithmetic, and answers in JSON that must meet a schema.

The default model, LoRA, at most 15 minutes each. 500 problems are held out; no pair of numbers, and no name with its
age and city, is on both sides. The score is the share of the greedy answers that pass all their checks.

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
FORMS = (
    "What is {a} {op} {b}?", "Compute {a} {op} {b}.", "Ann has {a} coins and {gets} {b}. How many has she now?",
    "Tell me the result of {a} {op} {b}.",
)  # fmt: skip
NAMES = [
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hugo", "Ines", "Jan", "Kira", "Liam", "Mona", "Noor", "Omar",
    "Pia", "Quinn", "Rosa", "Sam", "Tara",
]  # fmt: skip
CITIES = ["Oslo", "Lima", "Rome", "Cairo", "Paris", "Delhi", "Quito", "Tokyo", "Accra", "Sofia"]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "city"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "city": {"type": "string"}},
}  # fmt: skip


def arithmetic(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for a, b in itertools.product(range(2, 50), repeat=2):
        op = rng.choice("+-")
        a, b = (max(a, b), min(a, b)) if op == "-" else (a, b)
        form = rng.choice(FORMS).format(a=a, b=b, op=op, gets="gets" if op == "+" else "spends")
        rows.append({"prompt": form + " Answer with the number only.", "answer": str(a + b if op == "+" else a - b)})
    unique = {row["prompt"]: row for row in rows}
    return list(unique.values())


def in_json(rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for name, city in itertools.product(NAMES, CITIES):
        for age in rng.sample(range(7, 90), 8):
            text = f"{name} is {age} years old and lives in {city}."
            asked = 'Write it as one JSON object with the keys "name", "age" (a number) and "city", and nothing else.'
            right = {"name": name, "age": age, "city": city}
            rows.append({"prompt": f"{text} {asked}", "answer": json.dumps(right), "schema": SCHEMA})
    return rows


def learn(folder: Path, name: str, rows: list[dict[str, Any]], held: int, **changes: Any) -> dict[str, Any]:
    random.Random(1).shuffle(rows)
    for side, some in (("held", rows[:held]), ("train", rows[held:])):
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
    rng = random.Random(0)
    changes: dict[str, Any] = {"minutes": 12.0, "lr": 3e-4, "threads": threads}
    held = HELD_OUT
    if minute:
        changes = {"steps": 1, "prompts": 2, "samples": 3, "max_tokens": 12, "threads": threads, "layers_trained": 2}
        held = 4
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {
            "arithmetic": learn(folder, "arithmetic", arithmetic(rng), held, **{"max_tokens": 24, **changes}),
            "json": learn(folder, "json", in_json(rng), held, **{"max_tokens": 48, **changes}),
        }
    bars = {
        f"{name}: at least 20 points gained on {held} unseen problems":
            found[name]["reward"]["after"]["mean"] - found[name]["reward"]["before"]["mean"] >= 0.2
        for name in found
    }  # fmt: skip
    return {"threads": threads, "model": DEFAULT_MODEL, **found} | ({} if minute else {"bars": bars})
