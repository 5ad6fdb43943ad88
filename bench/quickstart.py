"""A clean clone climbs all three rungs: the whole program as a stranger runs it, timed without the installation."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ladderlm.errors import LadderError

ROOT = Path(__file__).resolve().parents[1]


def climb(clone: Path, home: Path, *args: str) -> float:
    """Wall seconds of `./ladder quickstart --no-serve` in `clone`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LADDER")} | {"LADDERLM_HOME": str(home)}
    start = time.perf_counter()
    command = [str(clone / "ladder"), "quickstart", "--no-serve", *args]
    done = subprocess.run(command, env=env, cwd=clone, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LadderError("quickstart failed", where=done.stderr.strip()[-500:])
    return time.perf_counter() - start


def measure(minute: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        if minute:
            seconds = climb(ROOT, home, "--only", "prompt")
            return {"prompt_rung_seconds": round(seconds, 1), "bars": {"the prompt rung ends": True}}
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        env = os.environ | {"LADDER_VENV": str(clone / ".venv")}
        subprocess.run([str(clone / "ladder"), "install", "serve,train,eval"], check=True, env=env, capture_output=True)
        cpu = sum(os.times()[2:4])
        seconds = climb(clone, home)
        cpu = sum(os.times()[2:4]) - cpu
        ledger = json.loads((home / "runs" / "quickstart" / "ledger.json").read_text())
        found = {name: row["results"] for name, row in ledger.items()}
        return figures(found, seconds, cpu, {n: row["wall_seconds"] for n, row in ledger.items()})


def figures(found: dict[str, Any], seconds: float, cpu: float, stages: dict[str, float]) -> dict[str, Any]:
    after, bits, ended = found["after"], found["bits"], found["compared"]["ended"]
    return {
        "seconds": round(seconds, 1),
        "cpu_minutes": round(cpu / 60, 1),
        "stage_seconds": stages,
        "finetune": after["scores"],
        "finetune_verdict": after["verdict"],
        "forgetting": after["forgetting"],
        "bits_per_byte": {k: bits[k] for k in ("model", "interval", "trigram", "xz")},
        "ended_turn": ended,
        "preference_accuracy": found["aligned"].get("scores"),
        "bars": {
            "at most 12 minutes": seconds <= 720,
            "at most 25 CPU-minutes": cpu <= 1500,
            "LoRA above zero-shot, few-shot, majority and tf-idf": after["above_all"],
            "bits per byte below xz -9": bits["model"] < bits["xz"],
            "bits per byte below a smoothed trigram": bits["model"] < bits["trigram"],
            "the tuned model ends its turn on 90 of 100": ended["tuned"]["ended"] >= 90,
        },
    }
