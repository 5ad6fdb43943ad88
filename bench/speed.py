"""Decode and prefill of the engine on the default model; medians. Prompts differ, so that no cache answers."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

from ladderlm import engine
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Sampling


def measure(minute: bool) -> dict[str, Any]:
    files = open_model(DEFAULT_MODEL)
    rounds, prompt_length, new = (3, 128, 32) if minute else (9, 512, 128)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    prefill, decode = [], []
    with engine.load(files) as model:
        loaded = time.perf_counter() - start
        for _ in range(rounds + 1):
            ids = rng.integers(100, files.arch.vocab_size - 1, prompt_length).tolist()
            began = time.perf_counter()
            times = [
                time.perf_counter()
                for delta in model.generate(ids, Sampling(temperature=0, max_tokens=new, min_tokens=new))
                if delta.tokens
            ]
            prefill.append(prompt_length / (times[0] - began))
            decode.append((len(times) - 1) / (times[-1] - times[0]))
    return {
        "threads": os.cpu_count(),
        "load_seconds": round(loaded, 2),
        "prompt_tokens": prompt_length,
        "prefill_tokens_per_second": round(statistics.median(prefill[1:]), 1),
        "decode_tokens_per_second": round(statistics.median(decode[1:]), 1),
    }
