"""What a LoRA costs per request: decode through one of rank 8 on all seven matrices, over decode without.

The default model on one engine without guesses, random numbers in A and B. Each round decodes without, with, without
and with after the same prompt, so that what else the machine does falls on both; the cost is that of the median round.
Two numbers beside it have no bar: reading a prompt of 512 tokens, and four requests at a time with two adapters.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.engine import THREADS
from ladderlm import engine
from ladderlm.engine.engine import Engine
from ladderlm.models import open_model
from ladderlm.models.adapter import TARGETS, Adapter, LoraConfig
from ladderlm.models.arch import Architecture
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Sampling

RANK, TOKENS, PROMPT = 8, 128, 512


def random_lora(arch: Architecture, seed: int) -> Adapter:
    """On all seven matrices of every layer."""
    random, pairs = np.random.default_rng(seed), {}
    for name, shape in arch.tensor_shapes().items():
        if name.startswith("model.layers.") and name.endswith(tuple(f"{t}.weight" for t in TARGETS)):
            a, b = random.normal(0, 0.04, (RANK, shape[1])), random.normal(0, 0.004, (shape[0], RANK))
            pairs[name] = a.astype(np.float32), b.astype(np.float32)
    return Adapter(Path(f"random-{seed}"), DEFAULT_MODEL, "lora", {}, 0, LoraConfig(RANK), 2.0, pairs)


def decode(model: Engine, ids: list[int], adapter: str | None) -> float:
    """Seconds from the first token to the last."""
    sampling, times = Sampling(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS), []
    for delta in model.generate(ids, sampling, adapter=adapter):
        times += [time.perf_counter()] * len(delta.tokens)
    return times[-1] - times[0]


def prefill(model: Engine, random: np.random.Generator, adapter: str | None) -> float:
    ids, began = random.integers(3, model.vocab_size, PROMPT).tolist(), time.perf_counter()
    model.next_logits(ids, adapter=adapter)
    return time.perf_counter() - began


def together(model: Engine, ids: list[int], adapters: list[str | None]) -> float:
    """Seconds of decodes side by side."""
    threads = [threading.Thread(target=decode, args=(model, ids, adapter)) for adapter in adapters]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def costs(run: Callable[[bool], float], rounds: int) -> list[float]:
    """For each round of without, with, without, with: how much longer it takes with."""
    found = []
    for _ in range(rounds):
        times = [run(which) for which in (False, True, False, True)]
        found.append(round((times[1] + times[3]) / (times[0] + times[2]) - 1, 4))
    return found


def measure(minute: bool) -> dict[str, Any]:
    rounds, random = 3 if minute else 15, np.random.default_rng(0)
    files = open_model(DEFAULT_MODEL)
    ids = random.integers(3, files.arch.vocab_size, 64).tolist()
    with engine.load(files, threads=int(THREADS), speculate=False) as model:
        for seed, name in enumerate(("one", "two")):
            model.add_adapter(name, random_lora(files.arch, seed))
        for adapter in (None, "one"):  # warm, and the prompt read
            decode(model, ids, adapter)
        single = costs(lambda which: decode(model, ids, "one" if which else None), rounds)
        reading = costs(lambda which: prefill(model, random, "one" if which else None), rounds)
        batch = costs(lambda which: together(model, ids, ["one", "two"] * 2 if which else [None] * 4), rounds)
    cost = statistics.median(single)
    result = {
        "decode_cost": cost, "prefill_cost": statistics.median(reading),
        "four_with_two_adapters_cost": statistics.median(batch), "decode_costs": single, "prefill_costs": reading,
        "four_costs": batch,
    }  # fmt: skip
    return {**result, "bars": {"rank 8 on seven matrices costs at most 15 % of decode": cost <= 0.15}}
