"""`climb` on SST-2 with the default model: the table, in under 20 minutes, and a recommendation that agrees with it.

Bars: every rung was tried; the climb took under 20 minutes; the recommended rung is the lowest that no other rung beats
beyond chance and that beats the most frequent label, worked out here again from the table's own scores; LoRA beats the
zero-shot and few-shot model with intervals that do not overlap.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ladderlm import store
from ladderlm.apps.climb.run import USUAL, ClimbConfig, Climbed, run
from ladderlm.errors import NotFound
from ladderlm.evals.intervals import bootstrap

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data"))
NAMES = {"0": "negative", "1": "positive"}
QUICK = ("zero-shot", "from scratch")


def measure(minute: bool) -> dict[str, Any]:
    source = DATA / "eval" / "sst2-train.tsv"
    if not source.exists():
        raise NotFound("no SST-2", where=str(source), cure="set LADDERLM_DATA to the folder that holds eval/")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "sst2.jsonl"
        rows = [line.rsplit("\t", 1) for line in source.read_text(encoding="utf-8").splitlines() if "\t" in line]
        made = [{"text": text, "label": NAMES[label]} for text, label in rows if label in NAMES]
        data.write_text("".join(json.dumps(row) + "\n" for row in made[: 400 if minute else None]), encoding="utf-8")
        config = ClimbConfig(
            str(data), out=str(Path(folder) / "made"), only=QUICK if minute else (), test=40 if minute else 300,
            threads=int(os.environ.get("LADDERLM_BENCH_THREADS", "0")),
        )  # fmt: skip
        began = time.monotonic()
        climbed = run(config)
        minutes = (time.monotonic() - began) / 60
        report = store.open_run(climbed.run).report.read_text(encoding="utf-8")
    scores = {r.tried.rung: r.tried.scores for r in climbed.rungs if r.tried.scores}
    bars = {
        "under 20 minutes": minutes < 20,
        "every rung was tried": all(r.tried.scores for r in climbed.rungs),
        "the recommendation agrees with the table": recommended(scores) == climbed.recommended
        and agrees(climbed, report),
    }
    if not minute:
        low = bootstrap(scores["LoRA"]).low
        bars["LoRA above zero-shot and few-shot"] = all(
            low > bootstrap(scores[name]).high for name in ("zero-shot", "few-shot")
        )
    figures = {
        r.tried.rung: {
            "score": r.score.to_dict() if r.score else None, "minutes": r.tried.minutes,
            "memory_mb": r.tried.memory_mb, "ship_bytes": r.tried.ship_bytes, "suffices": r.suffices,
        }
        for r in climbed.rungs
    }  # fmt: skip
    found = {"bars": bars, "threads": config.threads or os.cpu_count(), "minutes": minutes}
    return {**found, "rungs": figures, "sentence": climbed.sentence}


def recommended(scores: dict[str, tuple[float, ...]]) -> str:
    """The rule again, by plain paired intervals: differences of means from bootstrap samples of the same items."""
    for name, own in scores.items():
        above = name != USUAL and bootstrap(scores[USUAL], own).low > 0
        if above and not any(bootstrap(own, other).low > 0 for other in scores.values()):
            return name
    return ""


def agrees(climbed: Climbed, report: str) -> bool:
    return climbed.sentence in report and (climbed.recommended in climbed.sentence)
