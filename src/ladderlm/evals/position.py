"""Does context help? The loss of a model by how many tokens of the text came before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ladderlm import events
from ladderlm.errors import UsageError
from ladderlm.evals.intervals import Interval, bootstrap, bootstrap_ratio
from ladderlm.evals.perplexity import Encoder, token_logprobs, windows
from ladderlm.types import Model, Value

_HALVES = 16  # tokens that a window needs for its halves to be compared


@dataclass(frozen=True, slots=True)
class Bucket(Value):
    """Tokens with `first` to `last` tokens of their window before them: how many, and their mean loss in nats."""

    first: int
    last: int
    tokens: int
    loss: Interval


@dataclass(frozen=True, slots=True)
class PositionLoss(Value):
    """Loss by position over all windows. `gain`: how many nats a token the first half of a window costs more than its
    second half, over windows of 16 tokens and more (None without any); it compares a text with itself, where the
    buckets further on hold only the longer texts."""

    context: int
    windows: int
    tokens: int
    nats: float
    buckets: tuple[Bucket, ...]
    gain: Interval | None


def loss_by_position(
    model: Model, tokenizer: Encoder, texts: Sequence[str], context: int | None = None, seed: int = 0
) -> PositionLoss:
    """Scores every token once, in the windows of perplexity.evaluate; intervals are over windows.

    Buckets are 0, 1, 2-3, 4-7 and so on. Raises UsageError without any text.
    """
    context = min(context or model.context_length, model.context_length)
    if context < 2:
        raise UsageError("context must be at least 2", where=f"context={context}")
    sums: dict[int, list[tuple[float, int]]] = defaultdict(list)
    gains, nats, tokens, count = [], 0.0, 0, 0
    for text in events.track([t for t in texts if t], "loss by position", unit="texts"):
        for window, unscored in windows(tokenizer.encode(text), tokenizer.document_start_id, context):
            loss_T = -token_logprobs(model, window)
            if not len(loss_T):
                continue
            nats, tokens, count = nats + float(loss_T.sum()), tokens + len(loss_T), count + 1
            place_T = np.arange(len(loss_T)) + unscored
            number_T = np.frexp(place_T)[1]  # 0, 1, 2 for 2 and 3, 3 for 4 to 7
            for number in np.unique(number_T):
                inside_T = number_T == number
                sums[int(number)].append((float(loss_T[inside_T].sum()), int(inside_T.sum())))
            if len(loss_T) >= _HALVES:
                early, late = np.array_split(loss_T, 2)
                gains.append(float(early.mean() - late.mean()))
    if not tokens:
        raise UsageError("no text to score", cure="give at least one text of two tokens")
    buckets = []
    for number, pairs in sorted(sums.items()):
        over, under = zip(*pairs, strict=True)
        last = min(2**number - 1, context - 1)
        buckets.append(Bucket(2**number // 2, last, sum(under), bootstrap_ratio(over, under, seed)))
    gain = bootstrap(gains, seed=seed) if gains else None
    return PositionLoss(context, count, tokens, nats, tuple(buckets), gain)
