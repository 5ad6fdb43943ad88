"""What `ladderlm plan` foretells of five pretrainings, beside what they then take.

Each is planned in a process of its own, with at most 30 s of trying out, and then run in another. Memory is that by
which the process grows while it trains; time is compared in CPU seconds, since other programs on the machine change how
long a run takes and not how much work it is. The errors are those that the runs' own reports tell.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.data.records import read_records
from ladderlm.errors import LadderError, NotFound
from ladderlm.text.bpe import train_bpe

CORPUS = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "corpus" / "tinyshakespeare.txt"
VOCABULARY = 2048
# name -> flags; "steps" last, so that a run takes about half a minute of one core.
RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "4 x 192, Muon": ({"layers": 4, "dim": 192, "heads": 3}, 40),
    "2 x 64, short windows, average": (
        {"layers": 2, "dim": 64, "heads": 2, "seq-len": 128, "batch-tokens": 1024, "ema": 0.99}, 400),
    "6 x 256, two passes a step, recomputed": (
        {"layers": 6, "dim": 256, "heads": 4, "micro-tokens": 1024, "recompute": None}, 16),
    "4 x 128, AdamW, average, large batch": (
        {"layers": 4, "dim": 128, "heads": 2, "batch-tokens": 8192, "muon-lr": 0, "ema": 0.999}, 24),
    "8 x 320, Muon": ({"layers": 8, "dim": 320, "heads": 5, "batch-tokens": 1024}, 14),
}  # fmt: skip


def ladderlm(verb: str, *args: str, env: dict[str, str]) -> dict[str, Any]:
    """A verb's JSON, from a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "ladderlm", verb, *args, "--json"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LadderError(f"ladderlm {verb} failed", where=" ".join(args), cure=done.stderr.strip()[-500:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one(flags: dict[str, Any], steps: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Planned, then run."""
    env = dict(os.environ, LADDERLM_HOME=str(folder))
    given = [f"--{name}" if value is None else f"--{name}={value}" for name, value in flags.items()]
    shared = [str(CORPUS), "--tokenizer", str(folder / "tokenizer.json"), "--threads=1", f"--steps={steps}", *given]
    plan = ladderlm("plan", *shared, f"--calibrate={seconds}", env=env)
    planned = ladderlm("pretrain", *shared, "--out", str(folder / "model"), "--replace", env=env)["planned"]
    predicted, measured = planned["predicted"], planned["measured"]
    error = {name: round(predicted[name] / measured[name] - 1, 4) for name in measured}
    return {"parameters": plan["parameters"], "steps": steps, "calibration": plan["calibration"], "error": error,
            "predicted": predicted, "measured": measured}  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    if not CORPUS.exists():
        raise NotFound("no such corpus", where=str(CORPUS), cure="set LADDERLM_DATA to the folder that holds corpus/")
    seconds, shorter, runs = (3.0, 8, list(RUNS.items())[1:2]) if minute else (30.0, 1, list(RUNS.items()))
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = train_bpe([r["text"] for r in read_records(CORPUS)], VOCABULARY)
        (folder / "tokenizer.json").write_text(tokenizer.to_json())
        for name, (flags, steps) in runs:
            found[name] = one(flags, max(8, steps // shorter), seconds, folder)
    errors = {
        what: [abs(row["error"][what]) for row in found.values()] for what in ("memory", "cpu_seconds", "seconds")
    }
    figures = {f"{what}_error_median": round(statistics.median(each), 4) for what, each in errors.items()}
    figures |= {f"{what}_error_worst": round(max(each), 4) for what, each in errors.items()}
    bars = {
        f"{said}: {kind} error at most {most:.0%}": figures[f"{what}_error_{kind}"] <= most
        for said, what in (("memory", "memory"), ("CPU time", "cpu_seconds"))
        for kind, most in (("median", 0.15), ("worst", 0.30))
    }
    return {"seconds_tried_out": seconds, **figures, "runs": found} | ({} if minute else {"bars": bars})
