"""Shuffled labels: of 20 fine-tunings on labels that mean nothing, how many does the page call a help?

SST-2's sentences with their labels shuffled anew for each seed; the default model and LoRA. Bars: at most 1 of 20 seeds
is "helped"; the same run on the true labels is.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from ladderlm.errors import NotFound
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.train import finetune

DATA = Path(os.environ.get("LADDERLM_DATA", "../shared/data"))
NAMES = {"0": "negative", "1": "positive"}
SIZES, QUICK = (400, 80), (40, 20)  # records to train on, held out


def measure(minute: bool) -> dict[str, Any]:
    source = DATA / "eval" / "sst2-train.tsv"
    if not source.exists():
        raise NotFound("no SST-2", where=str(source), cure="set LADDERLM_DATA to the folder that holds eval/")
    rows = [line.rsplit("\t", 1) for line in source.read_text(encoding="utf-8").splitlines() if "\t" in line]
    rows = [(text, NAMES[label]) for text, label in rows if label in NAMES]
    seeds, steps = (1, 2) if minute else (20, 30)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            verdict(rows, Path(folder), seed, steps, QUICK if minute else SIZES, shuffled=True) for seed in range(seeds)
        ]
        true = "not run" if minute else verdict(rows, Path(folder), 0, 2 * steps, SIZES, shuffled=False)
    bars = {"at most 1 of 20 is helped": sum(f["verdict"] == "helped" for f in found) <= 1}
    if not minute:
        bars["true labels help"] = true["verdict"] == "helped"
    return {"bars": bars, "seeds": found, "true": true}


def verdict(
    rows: list[tuple[str, str]], folder: Path, seed: int, steps: int, sizes: tuple[int, int], *, shuffled: bool
) -> dict[str, Any]:
    rng, (train, held) = random.Random(seed), sizes
    some = rng.sample(rows, train + held)
    labels = [label for _, label in some]
    if shuffled:
        rng.shuffle(labels)
    made = [{"text": text, "label": label} for (text, _), label in zip(some, labels, strict=True)]
    for name, part in (("train", made[:train]), ("held", made[train:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = finetune.FinetuneConfig(
        data=str(folder / "train.jsonl"), model=DEFAULT_MODEL, out=str(folder / "tuned"), replace=True,
        held_out=str(folder / "held.jsonl"), steps=steps, seed=seed,
    )  # fmt: skip
    scores = finetune.run(config).scores
    helped = scores["helped"]
    return {"verdict": scores["verdict"], "before": helped["before"], "after": helped["after"]}
