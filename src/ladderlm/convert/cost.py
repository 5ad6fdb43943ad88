"""What a smaller form of a model costs: perplexity on the same text before and after, bytes, and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ladderlm import engine, events
from ladderlm.data.collect import collect
from ladderlm.evals.intervals import Interval, bootstrap_ratio
from ladderlm.evals.perplexity import token_logprobs
from ladderlm.models.folder import ModelFiles
from ladderlm.types import Sampling, Value

if TYPE_CHECKING:
    from ladderlm.engine.engine import Engine

WINDOW = 512  # most tokens of a window
PROMPT, DECODED, ROUNDS = 16, 64, 3


@dataclass(frozen=True, slots=True)
class Measured(Value):
    """One form on the text: nats of each window, and greedy tokens per second (the best of a few)."""

    nats: tuple[float, ...]
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Cost(Value):
    """Perplexities, by what share the second is higher with its paired 95 % interval, speeds and bytes."""

    tokens: int
    perplexity_before: float
    perplexity_after: float
    increase: Interval
    tokens_per_second_before: float
    tokens_per_second_after: float
    bytes_before: int
    bytes_after: int


def cost(before: ModelFiles, after: ModelFiles, texts: Sequence[str], most: int = 2**14) -> Cost:
    """Compares two forms on at most `most` tokens of `texts`."""
    windows = text_windows(before, texts, most)
    tokens = sum(len(w) - 1 for w in windows)
    a, b = measure(before, windows), measure(after, windows)
    return Cost(
        tokens, math.exp(sum(a.nats) / tokens), math.exp(sum(b.nats) / tokens), increase(b, a, windows),
        a.tokens_per_second, b.tokens_per_second, before.bytes, after.bytes,
    )  # fmt: skip


def load_texts(source: str) -> list[str]:
    """The texts of `source` (as `collect` reads it), in an order drawn by a fixed seed."""
    texts = [r["text"] for r in collect(source or "python:docs")]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def text_windows(files: ModelFiles, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
    """Windows of ids over the texts, each led by the document-start token, of `most` tokens in all."""
    start = files.tokenizer.document_start_id
    head = [] if start is None else [start]
    size = min(WINDOW, files.arch.context_length) - len(head)
    windows, total = list[list[int]](), 0
    for text in texts:
        ids = files.tokenizer.encode(text)
        for at in range(0, len(ids), size):
            piece = [*head, *ids[at : at + size]]
            if len(piece) > 1:
                windows.append(piece)
                total += len(piece)
        if most is not None and total >= most:
            break
    return windows


def measure(files: ModelFiles, windows: Sequence[Sequence[int]]) -> Measured:
    """One form on the windows."""
    with engine.load(files) as model:
        nats = [-float(token_logprobs(model, w).sum()) for w in events.track(windows, "perplexity", unit="windows")]
        speeds = [_decode(model, list(windows[0][:PROMPT])) for _ in range(ROUNDS)]
    return Measured(tuple(nats), max(speeds))


def _decode(model: Engine, prompt: list[int]) -> float:
    begin, first, last = 0.0, 0, 0
    count = min(DECODED, model.context_length - len(prompt))
    for delta in model.generate(prompt, Sampling(temperature=0, max_tokens=count, min_tokens=count)):
        if delta.ids and not begin:
            begin, first = time.perf_counter(), len(delta.ids)
        last += len(delta.ids)
    return (last - first) / (time.perf_counter() - begin)


def increase(after: Measured, before: Measured, windows: Sequence[Sequence[int]]) -> Interval:
    """By what share the perplexity is higher than before, with its paired 95 % interval over windows."""
    found = bootstrap_ratio(
        [a - b for a, b in zip(after.nats, before.nats, strict=True)], [len(w) - 1 for w in windows]
    )
    return Interval(*(math.expm1(x) for x in (found.mean, found.low, found.high)))
