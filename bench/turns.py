"""A conversation's second turn, and decode after a text that repeats itself.

1. The default model reads a conversation of 1,000 tokens, answers 32, and is asked again with 24 tokens more: the
   second turn's time to its first token over the first one's; at most 0.15. Nine conversations, none like another.
2. Decode after a random passage told four times, over decode after random tokens. It shows whether speculation from the
   prompt comes into play; it says nothing of its gain on real requests to edit or summarise, which have no bar here.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from bench.engine import THREADS
from ladderlm import engine
from ladderlm.engine.engine import Engine
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Sampling


def asked(model: Engine, ids: list[int], tokens: int) -> tuple[float, list[int], float]:
    """Seconds to the first token, the answer, and its tokens a second after the first."""
    start, times, answer = time.perf_counter(), [], []
    for delta in model.generate(ids, Sampling(temperature=0, max_tokens=tokens, min_tokens=tokens)):
        times += [time.perf_counter()] * len(delta.tokens)
        answer += delta.ids
    return times[0] - start, answer, (len(times) - 1) / (times[-1] - times[0])


def second_turn(model: Engine, random: np.random.Generator, length: int) -> float:
    """The second turn's time to its first token, over the first one's."""
    ids = random.integers(3, model.vocab_size, length).tolist()
    first, answer, _ = asked(model, ids, 32)
    again, _, _ = asked(model, [*ids, *answer, *random.integers(3, model.vocab_size, 24).tolist()], 2)
    return again / first


def repeating(model: Engine, random: np.random.Generator) -> float:
    """Decode after a passage told four times, over decode after as many random tokens."""
    passage = random.integers(3, model.vocab_size, 64).tolist()
    _, _, again = asked(model, passage * 4, 64)
    _, _, free = asked(model, random.integers(3, model.vocab_size, 256).tolist(), 64)
    return again / free


def measure(minute: bool) -> dict[str, Any]:
    rounds, length = (1, 256) if minute else (9, 1000)
    random = np.random.default_rng()
    with engine.load(open_model(DEFAULT_MODEL), threads=int(THREADS)) as model:
        asked(model, [3, 4, 5], 4)
        turns = [second_turn(model, random, length) for _ in range(rounds)]
        gains = [repeating(model, random) for _ in range(rounds)]
    share = statistics.median(turns)
    result = {
        "conversation_tokens": length, "second_turn_share": [round(t, 4) for t in turns],
        "second_turn_share_median": round(share, 4), "repeating_over_free_decode": round(statistics.median(gains), 3),
    }  # fmt: skip
    return (
        result if minute else {**result, "bars": {"the second turn starts in at most 15 % of the first": share <= 0.15}}
    )
