"""A model that finds every token equally likely: a test double that needs no weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from ladderlm.engine.sample import Sampler
from ladderlm.errors import ContextOverflow, DeadlineExceeded, UsageError
from ladderlm.types import Cancel, Delta, FloatArray, Sampling, Usage


class Uniform:
    """A `Model` whose logits are all zero."""

    def __init__(self, vocab_size: int, context_length: int = 1024) -> None:
        self.vocab_size, self.context_length = vocab_size, context_length

    def logits(self, ids: Sequence[int]) -> FloatArray:
        self._check(ids)
        return np.zeros((len(ids), self.vocab_size), np.float32)

    def generate(
        self, ids: Sequence[int], sampling: Sampling, *, cancel: Cancel | None = None, deadline: float | None = None
    ) -> Iterator[Delta]:
        self._check(ids)
        return self._deltas(list(ids), sampling, cancel, deadline)

    def _deltas(
        self, ids: list[int], sampling: Sampling, cancel: Cancel | None, deadline: float | None
    ) -> Iterator[Delta]:
        row, room = np.zeros(self.vocab_size, np.float32), self.context_length - len(ids)
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        written = 0
        for index in range(sampling.n):
            sampler, reason = Sampler(sampling, self.vocab_size, index=index, prompt=ids), "length"
            for _ in range(limit):
                if deadline is not None and time.monotonic() > deadline:
                    raise DeadlineExceeded("the deadline passed", where="generate")
                if cancel is not None and cancel.is_set():
                    reason = "cancelled"
                    break
                token = sampler.next(row)
                if token.id in sampling.stop_ids:
                    reason = "stop"
                    break
                written += 1
                yield Delta(index, tokens=(token,))
            yield Delta(index, finish_reason=reason)  # type: ignore[arg-type]
        yield Delta(usage=Usage(len(ids), written))

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("the prompt has no tokens")
        if len(ids) > self.context_length:
            raise ContextOverflow(f"{len(ids)} tokens do not fit a context of {self.context_length}")
        if not all(0 <= i < self.vocab_size for i in ids):
            raise UsageError(f"a token id lies outside 0..{self.vocab_size - 1}")
