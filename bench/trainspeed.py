"""Tokens a second of pretraining at equal architecture: ours, nanoGPT's network, and transformers with its Trainer.

1. The same Llama-style network, the same windows, AdamW for all, fp32: ours and `transformers` + Trainer.
2. Ours in the precisions that the processor has, and with the default optimiser; how far the loss moves after the same
   steps from the same weights.

One thread each, counted in CPU seconds, in turns; medians over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.timetoloss import ROOT, corpus
from ladderlm import events
from ladderlm.errors import LadderError

BATCH, WARM = 4096, 2  # tokens of a step; steps that are not counted
PLAIN: dict[str, Any] = {"batch_tokens": BATCH, "muon_lr": 0.0, "lr": 1e-3, "precision": "fp32"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "ours": {"who": "ours", "changes": PLAIN},
    "ours, bf16": {"who": "ours", "changes": {**PLAIN, "precision": "bf16"}},
    "ours, int8": {"who": "ours", "changes": {**PLAIN, "precision": "int8"}},
    "ours, as it comes": {"who": "ours", "changes": {"batch_tokens": BATCH}},
    "nanoGPT's network": {"who": "nanogpt", "batch_tokens": BATCH, "micro_tokens": BATCH, "lr": 1e-3},
    "transformers + Trainer": {"who": "trainer", "bf16": False},
    "transformers + Trainer, bf16": {"who": "trainer", "bf16": True},
}


def trainer(spec: dict[str, Any], windows: np.ndarray) -> list[float]:
    """CPU seconds at the end of each step of transformers' Trainer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from bench.learner import CONTEXT, SIZES, VOCAB

    times: list[float] = []
    shape = SIZES[spec["size"]]["ours"]
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=shape["dim"], num_hidden_layers=shape["layers"], tie_word_embeddings=True,
        intermediate_size=shape["hidden"], num_attention_heads=shape["heads"], max_position_embeddings=CONTEXT,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

    rows = [{"input_ids": row, "labels": row} for row in windows.astype(np.int64)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=spec["steps"], per_device_train_batch_size=BATCH // CONTEXT, learning_rate=1e-3,
            optim="adamw_torch_fused", lr_scheduler_type="constant", use_cpu=True, bf16=spec["bf16"], report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return times


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Tokens a CPU second, and the loss at the end on what is held out where it is ours."""
    import torch

    from bench.learner import CONTEXT, Looks, Ours, Peer, Tokenizer, Tokens

    torch.set_num_threads(1)
    folder, steps = Path(spec["folder"]), spec["steps"]
    ids_N = np.load(folder / "train.npy", mmap_mode="r")
    if spec["who"] == "trainer":
        rows = BATCH // CONTEXT * (steps + 1)
        times = trainer(spec, np.asarray(ids_N[: rows * CONTEXT]).reshape(rows, CONTEXT))
        loss = None
    else:
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        tokens = Tokens(ids_N, np.load(folder / "starts.npy"))
        looks = Looks(folder, tokenizer.document_start_id or 0)
        system = (Ours if spec["who"] == "ours" else Peer)(spec, tokens, tokenizer)
        times = system.run(steps, steps, steps, looks)
        loss = looks.points[-1][1]
    each = statistics.median(b - a for a, b in zip(times[WARM:], times[WARM + 1 :], strict=False))
    return {"tokens_per_cpu_second": round(BATCH / each, 1), "bits_per_byte": loss}


def rounds(size: str, count: int, steps: int, folder: Path, names: list[str]) -> dict[str, Any]:
    """Each system's median speed over `count` rounds in turns, against transformers' and to its own fp32 loss."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in events.track(range(count), f"train {size}", unit="rounds"):
        for name in names:
            spec = {"size": size, "seed": 0, "folder": str(folder), "steps": steps, **SYSTEMS[name]}
            done = subprocess.run(
                [sys.executable, "-m", "bench.trainspeed", json.dumps(spec)], cwd=ROOT, stdout=subprocess.PIPE,
                text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            if done.returncode:
                raise LadderError("a run failed", where=name, cure="see what it wrote above")
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    speed = {name: statistics.median(r["tokens_per_cpu_second"] for r in rows) for name, rows in found.items()}
    return {
        name: {
            "tokens_per_cpu_second": speed[name], "bits_per_byte": found[name][0]["bits_per_byte"],
            "over_trainer": round(speed[name] / speed["transformers + Trainer"], 2),
        } for name in names
    }  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as fresh:
        kept = os.environ.get("LADDERLM_BENCH_SCRATCH", fresh)
        folder = Path(fresh if minute else kept) / "timetoloss"
        if not (folder / "train.npy").exists():
            corpus(folder)
        if minute:
            return rounds("tiny", 1, 6, folder, ["ours", "transformers + Trainer"])
        sizes = {size: rounds(size, 3, steps, folder, list(SYSTEMS)) for size, steps in (("small", 20), ("large", 8))}
    bars = {}
    for size, found in sizes.items():
        bars[f"{size}: at least 1.2 x transformers + Trainer in fp32"] = found["ours"]["over_trainer"] >= 1.2
        peer = found["nanoGPT's network"]["tokens_per_cpu_second"]
        bars[f"{size}: at least nanoGPT's network in fp32"] = found["ours"]["tokens_per_cpu_second"] >= peer
    return {"batch_tokens": BATCH, "sizes": sizes, "bars": bars}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
