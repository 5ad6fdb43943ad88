"""Time to a loss: the default recipe against nanoGPT's, from the same text with the same number of weights.

1. nanoGPT's learning rate and batch are swept; the best pair is what is met.
2. Its final bits per byte on held-out text after the budget, and the budget in which ours gets there: ours is trained
   to the end of its schedule on several shares of the budget, and the time between two of them is read off the line
   through their results over the logarithm of time. Three seeds.
3. Each part of our recipe is taken away alone, on a third of the budget; an LSTM of the same size has the whole.

Two runs at a time, each on a core of its own and counted in its CPU seconds. The peer has our matrix product: torch's
own would be slower on some processors. Finished runs are kept in LADDERLM_BENCH_SCRATCH, so that a proof goes on.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import events
from ladderlm.errors import LadderError, NotFound
from ladderlm.text.bpe import train_bpe

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data")) / "corpus"
FILES = ("books-children.jsonl.gz", "books-classic-01.jsonl.gz")
# What decides how a run goes: a peer's, and in addition ours.
CODE = ("src/ladderlm/nn/linear.py", "bench/learner.py", "bench/nanogpt.py")
OURS = ("src/ladderlm/train/*.py", "src/ladderlm/nn/*.py")
VOCAB, HELD_EVERY, HELD = 4096, 25, slice(20_000, 60_000)  # of every 25th book a part is held out, the rest unread
SHARES = (1 / 3, 1 / 4.5, 1 / 7)
SEEDS = (0, 1, 2)
SWEEP = {
    "small": [(512, 1e-3), (512, 2e-3), (1024, 1e-3), (1024, 2e-3), (1024, 4e-3), (2048, 2e-3), (1024, 8e-3)],
    "large": [(1024, 1e-3), (2048, 1e-3), (2048, 2e-3), (4096, 1e-3)],
    "tiny": [(2048, 4e-3)],
}
SWEPT = {"small": 1 / 2, "large": 1 / 4, "tiny": 1.0}  # share of the budget that a setting is judged by
PARTS: dict[str, dict[str, Any]] = {
    "AdamW for all, not Muon for matrices": {"muon_lr": 0.0},
    "a cosine, not warmup, hold and cooldown": {"schedule": "cosine"},
    "products in fp32, not bf16": {"precision": "fp32"},
    "GPT-2's parts: layer norm, GELU, no gate, learned positions": {
        "norm": "layer", "activation": "gelu", "gated": False, "hidden": 4.0, "positions": "learned"
    },
}  # fmt: skip


def corpus(folder: Path) -> None:
    """Tokens to train on, tokens held out, and the tokenizer, as files that every run reads."""
    missing = [str(DATA / name) for name in FILES if not (DATA / name).exists()]
    if missing:
        raise NotFound("no such corpus", where=missing[0], cure="set LADDERLM_DATA to the folder that holds corpus/")
    lines = [line for name in FILES for line in gzip.decompress((DATA / name).read_bytes()).decode().splitlines()]
    books = [json.loads(line)["text"] for line in lines]
    held = [text[HELD] for text in books[::HELD_EVERY]]
    train = [text for i, text in enumerate(books) if i % HELD_EVERY]
    tokenizer = train_bpe(train[::3], VOCAB)
    start = tokenizer.document_start_id
    ids = [np.array([start, *tokenizer.encode(text)], dtype=np.uint16) for text in train]
    kept = np.concatenate([np.array(tokenizer.encode(text), dtype=np.uint16) for text in held])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / "held.json").write_text(json.dumps({"bytes": sum(len(text.encode()) for text in held)}))
    np.save(folder / "starts.npy", np.cumsum([0, *map(len, ids)])[:-1])
    np.save(folder / "held.npy", kept)
    np.save(folder / "train.npy", np.concatenate(ids))


def run_all(specs: Sequence[dict[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    """What the runs give, in their order; two at a time, each bound to a core; those done before are read."""
    names = [scratch / f"{_key(spec)}.json" for spec in specs]
    waiting = [(spec, name) for spec, name in zip(specs, names, strict=True) if not name.exists()]
    cores = sorted(os.sched_getaffinity(0))[:2]
    running: dict[int, tuple[subprocess.Popen[str], Path]] = {}
    done, count = 0, len(waiting)
    while waiting or running:
        for core in cores:
            if core not in running and waiting:
                spec, name = waiting.pop(0)
                command = [sys.executable, "-m", "bench.learner", json.dumps(spec), str(core)]
                env = {**os.environ, "OMP_NUM_THREADS": "1", "LADDERLM_HOME": str(scratch / "home")}
                process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
                running[core] = process, name
        time.sleep(0.2)
        for core, (process, name) in list(running.items()):
            if process.poll() is None:
                continue
            del running[core]
            said = process.stdout.read() if process.stdout else ""
            if process.returncode:
                for other, _ in running.values():
                    other.terminate()
                raise LadderError("a run failed", where=name.name, cure="see what it wrote above")
            name.write_text(said.strip().splitlines()[-1])
            done += 1
            events.emit("train", done=done, total=count, unit="runs", finished=done == count)
    return [json.loads(name.read_text()) for name in names]


def _key(spec: dict[str, Any]) -> str:
    """A name for what `spec` gives with the code as it is."""
    patterns = (*CODE, *(OURS if spec["who"] == "ours" else ()))
    code = b"".join(path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode() + code).hexdigest()[:16]


def seconds_to(loss: float, points: Iterable[tuple[float, float]]) -> float:
    """When `loss` is reached: on the line through neighbouring (seconds, loss) over the logarithm of time.

    Beyond the ends, the end: so a time below the shortest budget is told as that budget.
    """
    known = sorted(points)
    if known[0][1] <= loss:
        return known[0][0]
    for (early, high), (late, low) in itertools.pairwise(known):
        if low <= loss < high:
            share = (high - loss) / (high - low)
            return math.exp(math.log(early) + share * (math.log(late) - math.log(early)))
    return math.inf


def sweep(size: str, seconds: float, common: dict[str, Any], scratch: Path) -> tuple[dict[str, Any], list[list[float]]]:
    """nanoGPT's best settings, and all that were tried: (batch, rate, bits per byte)."""
    tried = [{"who": "nanogpt", "batch_tokens": batch, "lr": lr, **common} for batch, lr in SWEEP[size]]
    made = run_all([{**s, "seconds": seconds * SWEPT[size], "seed": 0} for s in tried], scratch)
    best = min(zip(made, tried, strict=True), key=lambda pair: pair[0]["bits_per_byte"])[1]
    return best, [[m["batch_tokens"], m["lr"], m["bits_per_byte"]] for m in made]


def compare(size: str, seconds: float, seeds: Sequence[int], scratch: Path, least: float) -> dict[str, Any]:
    """The times to the peer's loss, by seed."""
    common = {"size": size, "folder": str(scratch), "micro_tokens": 4096, "points": 10}
    best, tried = sweep(size, seconds, common, scratch)
    specs = []
    for seed in seeds:
        specs.append({**best, "seconds": seconds, "seed": seed})
        specs += [{"who": "ours", **common, "seconds": seconds * share, "seed": seed} for share in SHARES]
    made = run_all(specs, scratch)
    each = 1 + len(SHARES)
    groups = [made[i : i + each] for i in range(0, len(made), each)]
    speedups = [
        peer["seconds"] / seconds_to(peer["bits_per_byte"], [(o["seconds"], o["bits_per_byte"]) for o in ours])
        for peer, *ours in groups
    ]
    peer, ours = groups[0][0], groups[0][1]
    return {
        "budget_cpu_seconds": seconds, "parameters": {"ours": ours["parameters"], "nanogpt": peer["parameters"]},
        "sweep": tried, "peer": {"batch_tokens": best["batch_tokens"], "lr": best["lr"]},
        "speedup": round(statistics.median(speedups), 2), "speedups": [round(s, 2) for s in speedups],
        "tokens_per_second_over_peer": round(ours["tokens"] / ours["seconds"] / (peer["tokens"] / peer["seconds"]), 2),
        "runs": [{k: r[k] for k in ("who", "seed", "seconds", "tokens", "bits_per_byte")} for r in made],
        "curves": {"nanogpt": peer["points"], "ours": ours["points"]},
        "bars": {f"{size}: at least {least} x as fast to nanoGPT's final loss": min(speedups) >= least},
    }  # fmt: skip


def without(size: str, seconds: float, scratch: Path) -> list[dict[str, Any]]:
    """The recipe without each of its parts, by bits per byte."""
    from bench.learner import SIZES

    plain = {"who": "ours", "size": size, "folder": str(scratch), "micro_tokens": 4096, "points": 10, "seed": 0}
    specs = [{**plain, "seconds": seconds}]
    for changes in PARTS.values():
        made = {k: round(v * SIZES[size]["ours"]["dim"]) if k == "hidden" else v for k, v in changes.items()}
        specs.append({**plain, "seconds": seconds, "changes": made})
    rows = run_all(specs, scratch)
    names = ["the recipe", *PARTS]
    return [
        {"without": name, **{key: row[key] for key in ("bits_per_byte", "tokens", "parameters")},
         "worse_by": round(row["bits_per_byte"] - rows[0]["bits_per_byte"], 4)}
        for name, row in zip(names, rows, strict=True)
    ]  # fmt: skip


def measure(
    minute: bool, size: str = "small", seconds: float = 300.0, least: float = 2.5, seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as fresh:
        scratch = Path(fresh if minute else os.environ.get("LADDERLM_BENCH_SCRATCH", fresh)) / "timetoloss"
        if not (scratch / "train.npy").exists():
            corpus(scratch)
        if minute:
            found = compare("tiny", 6.0, (0,), scratch, 1.0)
            return {k: v for k, v in found.items() if k != "bars"}
        found = compare(size, seconds, seeds, scratch, least)
        if size != "small":
            return found
        plain = {"size": size, "folder": str(scratch), "micro_tokens": 4096, "points": 10, "seed": 0}
        (row,) = run_all([{"who": "lstm", **plain, **found["peer"], "seconds": seconds}], scratch)
        found["curves"]["lstm"] = row["points"]
        found["lstm_bits_per_byte"] = row["bits_per_byte"]
        return {**found, "without": without(size, seconds / 3, scratch)}
