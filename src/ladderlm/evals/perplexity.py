"""How well a model predicts text: perplexity per token, and bits per byte, which compares across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ladderlm import events
from ladderlm.errors import UsageError
from ladderlm.evals.intervals import Interval, bootstrap_ratio
from ladderlm.types import Model, Value


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def document_start_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Perplexity(Value):
    """The figures over all texts; `interval` is that of the bits per byte, over texts. `*_each` are each text's own."""

    perplexity: float
    bits_per_byte: float
    interval: Interval
    nats: float
    tokens: int
    bytes: int
    nats_each: tuple[float, ...]
    tokens_each: tuple[int, ...]
    bytes_each: tuple[int, ...]

    @property
    def perplexity_interval(self) -> Interval:
        """The perplexity and its interval, over texts."""
        found = bootstrap_ratio(self.nats_each, self.tokens_each)
        return Interval(*(math.exp(min(x, 700)) for x in (found.mean, found.low, found.high)))

    @property
    def bits_each(self) -> tuple[float, ...]:
        """Bits per byte of each text."""
        return tuple(n / math.log(2) / b for n, b in zip(self.nats_each, self.bytes_each, strict=True))


def evaluate(model: Model, tokenizer: Encoder, texts: Sequence[str], context: int | None = None) -> Perplexity:
    """Scores every token of every text once.

    A text longer than `context` (default: the model's) is cut into windows that do not overlap; each begins with the
    document-start token, so a window's first token has no text before it. Where the tokenizer has no such token, the
    first token of each window cannot be scored and its bytes are not counted. Raises UsageError without any text.
    """
    context = min(context or model.context_length, model.context_length)
    if context < 2:
        raise UsageError("context must be at least 2", where=f"context={context}")
    nats_each, bytes_each, tokens_each = [], [], []
    for text in events.track([t for t in texts if t], "perplexity", unit="texts"):
        ids = tokenizer.encode(text)
        nats, tokens, skipped = 0.0, 0, 0
        for window, unscored in windows(ids, tokenizer.document_start_id, context):
            logprobs = token_logprobs(model, window)
            nats -= float(logprobs.sum())
            tokens += len(logprobs)
            skipped += unscored
        size = len(text.encode())
        nats_each.append(nats)
        tokens_each.append(tokens)
        bytes_each.append(max(1, round(size * (1 - skipped / len(ids)))))
    if not sum(tokens_each):
        raise UsageError("no text to score", cure="give at least one text of two tokens")
    nats, total, size = math.fsum(nats_each), sum(tokens_each), sum(bytes_each)
    interval = bootstrap_ratio([n / math.log(2) for n in nats_each], bytes_each)
    return Perplexity(
        math.exp(min(nats / total, 700)), interval.mean, interval, nats, total, size,
        tuple(nats_each), tuple(tokens_each), tuple(bytes_each),
    )  # fmt: skip


def windows(ids: Sequence[int], start: int | None, context: int) -> Iterator[tuple[list[int], int]]:
    """(ids to feed, how many of the text's own tokens go unscored) of each window."""
    step = context if start is None else context - 1
    for at in range(0, len(ids), step):
        piece = list(ids[at : at + step])
        yield (piece, 1) if start is None else ([start, *piece], 0)


def token_logprobs(model: Model, ids: Sequence[int]) -> np.ndarray:
    """Natural-log probability of each of ids[1:], given all before it."""
    if len(ids) < 2:
        return np.zeros(0)
    logits_TV = model.logits(ids)[:-1]
    top_T = logits_TV.max(axis=1)
    total_T = np.exp(logits_TV - top_T[:, None]).sum(axis=1, dtype=np.float64)
    chosen_T = logits_TV[np.arange(len(ids) - 1), np.asarray(ids[1:])]
    return chosen_T.astype(np.float64) - top_T - np.log(total_T)
