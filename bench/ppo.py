"""PPO against a reward model, watched by another that it never sees.

Two reward models learn from two halves of the polite/impolite pairs: one rewards, the other judges. The default model
answers held-out instructions before and after, greedily.

Bars: the reward's whole interval of the change is above zero, the divergence of an answer stays below its target, and
what the judge says does not fall.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from bench.dpo import polite
from ladderlm.models.fetch import DEFAULT_MODEL
from ladderlm.store import open_run, read_jsonl
from ladderlm.train import align
from ladderlm.train.settings import AlignConfig

TARGET = 10.0  # nats an answer
HELD_OUT = 100


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(row: dict[str, Any]) -> dict[str, Any]:
    text = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
    return {"prompt": text, "completion": row["chosen"]}


def measure(minute: bool) -> dict[str, Any]:
    threads = int(os.environ.get("LADDERLM_BENCH_THREADS", "2"))
    rows = polite()
    random.Random(0).shuffle(rows)
    held, length, reward_length = HELD_OUT, {"minutes": 11.0}, {"minutes": 3.0}
    small: dict[str, Any] = {"threads": threads, "model": DEFAULT_MODEL, "skip_bad": True}
    if minute:
        rows = [r for r in rows if len(json.dumps(r)) < 400][:40]
        held, length, reward_length = 4, {"steps": 2}, {"steps": 2}
        small |= {"layers_trained": 2, "prompts": 2, "samples": 2, "max_tokens": 8, "batch_tokens": 512}
    kept, rest = rows[:held], rows[held:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found: dict[str, Any] = {}
        for i, name in enumerate(("reward", "judge")):
            part = lines(folder / f"{name}.jsonl", rest[i::2])
            made = align.run(AlignConfig(
                data=part, held_out=lines(folder / "held.pairs.jsonl", kept), objective="reward", seed=i,
                out=str(folder / name), lr=2e-4, **{**small, **reward_length},
            ))  # fmt: skip
            found[name] = {k: made.scores[k] for k in ("accuracy", "calibration_error")}
        result = align.run(AlignConfig(
            data=lines(folder / "prompts.jsonl", [asked(r) for r in rest]), objective="ppo",
            held_out=lines(folder / "held.jsonl", [asked(r) for r in kept]), reward=str(folder / "reward"),
            judge=str(folder / "judge"), target_kl=TARGET, out=str(folder / "ppo"),
            **{"samples": 2, "prompts": 12, "max_tokens": 48, "lr": 1e-4, **small, **length},
        ))  # fmt: skip
        metrics = read_jsonl(open_run(result.run).metrics)
    shown = ("reward", "judged", "answer_kl", "beta", "length", "entropy")
    found["ppo"] = {
        "steps": result.steps, "seconds": round(result.seconds, 1), "reward": result.scores["reward_change"],
        "judged": result.scores["helped"], "hacked": result.scores["hacked"],
        "engine_gap": result.scores["engine_gap"],
        "course": {key: [round(row[key], 4) for row in metrics[:: max(1, len(metrics) // 20)]] for key in shown},
    }  # fmt: skip
    bars = {
        "the reward rose, with its interval": found["ppo"]["reward"]["difference"]["low"] > 0,
        f"the last answers diverge by less than {TARGET:g} nats": metrics[-1]["answer_kl"] < TARGET,
        "the judge's score did not fall": found["ppo"]["judged"]["verdict"] != "harmed",
    }
    return {"threads": threads, "model": DEFAULT_MODEL, **found} | ({} if minute else {"bars": bars})
