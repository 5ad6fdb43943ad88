"""One training run of the proof `timetoloss`, in a process of its own: JSON settings in, JSON points out.

The budget is in CPU seconds of one thread, so that two runs side by side on two cores meet the same noise and a third
program costs neither of them anything. What a step costs is measured first, on a model that is thrown away; looking at
the held-out text is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.nanogpt import GPT, LSTM, Trainer
from ladderlm import store
from ladderlm.models.arch import Architecture
from ladderlm.nn.loss import Batch, nats
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.train.causal import Causal, length_at, shorten
from ladderlm.train.corpus import Tokens, windows
from ladderlm.train.derive import derived
from ladderlm.train.loop import Watch, fit
from ladderlm.train.optim import optimiser_of
from ladderlm.train.settings import LoopConfig, PretrainConfig

VOCAB, CONTEXT = 4096, 256
# Equal numbers of weights, ours the fewer: GPT-2's feed-forward part is 4 wide and has two matrices, ours has three.
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "ours": {"dim": 64, "layers": 2, "heads": 2, "hidden": 160},
        "nanogpt": {"dim": 64, "layers": 2, "heads": 2},
        "lstm": {"dim": 80, "layers": 1},
    },
    "small": {
        "ours": {"dim": 128, "layers": 4, "heads": 2, "hidden": 352},
        "nanogpt": {"dim": 128, "layers": 4, "heads": 2},
        "lstm": {"dim": 192, "layers": 2},
    },
    "large": {
        "ours": {"dim": 320, "layers": 8, "heads": 5, "hidden": 832},
        "nanogpt": {"dim": 320, "layers": 8, "heads": 5},
        "lstm": {"dim": 704, "layers": 2},
    },
}  # fmt: skip
TIMED, WARM = 6, 3  # steps


@dataclass
class Looks:
    """Bits per byte on held-out text, each with the CPU seconds that training had taken until then."""

    folder: Path
    start: int
    points: list[tuple[float, float]] = field(default_factory=list)
    lost: float = 0.0
    began: float = 0.0

    def __post_init__(self) -> None:
        ids_N = np.load(self.folder / "held.npy").astype(np.int64)
        rows = len(ids_N) // CONTEXT
        self.bytes = json.loads((self.folder / "held.json").read_text())["bytes"] * rows * CONTEXT / len(ids_N)
        self.targets_BT = torch.from_numpy(ids_N[: rows * CONTEXT].reshape(rows, CONTEXT))
        self.ids_BT = torch.cat([torch.full((rows, 1), self.start), self.targets_BT[:, :-1]], 1)

    @torch.no_grad()
    def look(self, cost: Callable[[Tensor, Tensor], float]) -> dict[str, float]:
        at = time.process_time()
        pairs = zip(self.ids_BT.split(16), self.targets_BT.split(16), strict=True)
        found = sum(cost(ids_BT, targets_BT) for ids_BT, targets_BT in pairs) / math.log(2) / self.bytes
        self.points.append((round(at - self.began - self.lost, 2), round(found, 5)))
        self.lost += time.process_time() - at
        return {"held_out_loss": found}


class Peer:
    """nanoGPT's network or the LSTM, by nanoGPT's recipe."""

    def __init__(self, spec: dict[str, Any], tokens: Tokens, tokenizer: Tokenizer) -> None:
        self.spec, self.batch = spec, spec["batch_tokens"]
        micro = min(self.batch, spec["micro_tokens"])
        self.each = self.batch // micro
        self.get = windows(tokens, CONTEXT, micro // CONTEXT, spec["seed"], tokenizer.document_start_id or 0)

    def run(self, total: int, steps: int, every: int, looks: Looks | None) -> list[float]:
        """Trains `steps` of `total`; CPU seconds at the beginning of each."""
        spec, times = self.spec, []
        torch.manual_seed(spec["seed"])
        shape = SIZES[spec["size"]][spec["who"]]
        model = GPT(VOCAB, context=CONTEXT, **shape) if spec["who"] == "nanogpt" else LSTM(VOCAB, **shape)
        spec["parameters"] = sum(p.numel() for p in model.parameters())
        trainer = Trainer(model, spec["lr"], total)

        def cost(ids_BT: Tensor, targets_BT: Tensor) -> float:
            return float(F.cross_entropy(model(ids_BT).flatten(0, 1), targets_BT.flatten(), reduction="sum"))

        for number in range(steps):
            times.append(time.process_time())
            numbers = range(number * self.each, (number + 1) * self.each)
            trainer.step(number, [lambda i=i: rows_of(self.get(i)) for i in numbers])
            if looks and ((number + 1) % every == 0 or number + 1 == total):
                looks.look(cost)
        return times

    def steps(self, seconds: float) -> int:
        times = self.run(10**6, WARM + TIMED, 1, None)
        return max(20, round(seconds / (times[-1] - times[WARM - 1]) * TIMED))

    def tokens(self, steps: int) -> int:
        return steps * self.batch


class Ours:
    """The package's loop and default recipe, but for `changes` to its settings or to the architecture."""

    def __init__(self, spec: dict[str, Any], tokens: Tokens, tokenizer: Tokenizer) -> None:
        self.spec, self.tokens_, self.tokenizer = spec, tokens, tokenizer
        changes = spec.get("changes", {})
        known = {f.name for f in dataclasses.fields(PretrainConfig)}
        self.arch = {k: v for k, v in changes.items() if k not in known}
        settings = {"vocab_size": VOCAB, "seq_len": CONTEXT, "seed": spec["seed"], **SIZES[spec["size"]]["ours"]}
        settings |= {k: v for k, v in changes.items() if k in known}
        self.config = derived(PretrainConfig(data="x", steps=1, **settings))

    def architecture(self, objective: Causal) -> Architecture:
        return dataclasses.replace(objective.architecture(self.config, self.tokenizer), **self.arch)

    def run(self, total: int, steps: int, every: int, looks: Looks | None) -> list[float]:
        """Trains `steps` of `total`; CPU seconds at the beginning of each."""
        config = dataclasses.replace(self.config, steps=steps)
        if not looks:
            config = dataclasses.replace(config, batch_ramp=0, length_ramp=0)
        objective, times = Causal(config, self.tokenizer), []
        model = objective.build(self.architecture(objective))
        self.spec["parameters"] = sum(p.numel() for p in model.parameters())
        optimiser = optimiser_of(model, config)
        get = objective.batches(self.tokens_)

        def cost(ids_BT: Tensor, targets_BT: Tensor) -> float:
            lengths = (ids_BT.shape[1],) * len(ids_BT)
            batch = Batch(ids_BT.flatten(), lengths, torch.arange(ids_BT.numel()), targets_BT.flatten())
            return float(nats(model, batch).sum())

        def batches(number: int) -> Batch:
            times.append(time.process_time())
            return get(number)

        def shape(batch: Batch, step: int) -> Batch:
            length = length_at(step, config.length_ramp, config.seq_len)
            return batch if length == config.seq_len else shorten(batch, length)

        loop: LoopConfig = dataclasses.replace(config.loop(), evaluate_every=every if looks else 0, tensorboard=False)
        watch = Watch(lambda: looks.look(cost)) if looks else Watch()
        with tempfile.TemporaryDirectory() as scratch:
            run_ = store.new_run("pretrain", {}, path=Path(scratch) / "run")
            fit(model, objective.loss, batches, optimiser, run_, loop, watch=watch, shape=shape)
        return times[:: config.accumulate]

    def steps(self, seconds: float) -> int:
        times = self.run(10**6, WARM + TIMED, 1, None)
        return max(20, round(seconds / (times[-1] - times[WARM - 1]) * TIMED))

    def tokens(self, steps: int) -> int:
        return steps * self.config.micro_batch * CONTEXT * self.config.accumulate


def rows_of(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.ids_T.view(len(batch.lengths), -1), batch.targets_N


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """The run that `spec` describes, with its points (CPU seconds, bits per byte)."""
    torch.set_num_threads(1)
    folder = Path(spec["folder"])
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tokens = Tokens(np.load(folder / "train.npy", mmap_mode="r"), np.load(folder / "starts.npy"))
    system = (Ours if spec["who"] == "ours" else Peer)(spec, tokens, tokenizer)
    steps = system.steps(spec["seconds"])
    looks = Looks(folder, tokenizer.document_start_id or 0)
    looks.began = time.process_time()
    system.run(steps, steps, max(1, steps // spec["points"]), looks)
    seconds, loss = looks.points[-1]
    made = {"steps": steps, "tokens": system.tokens(steps), "seconds": seconds, "bits_per_byte": loss}
    return {**{k: v for k, v in spec.items() if k != "folder"}, **made, "points": looks.points}


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(sys.argv[2])})
    print(json.dumps(train(json.loads(sys.argv[1]))))
