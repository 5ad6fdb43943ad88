"""From logits to the next token: penalties, mask, temperature, filters, draw.

Order: logit_bias, penalties, grammar and min_tokens; temperature; top_k, typical, top_p, min_p, each on what the one
before left, renormalised; then one draw. Log-probabilities are those of the model itself, before all of this.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ladderlm.errors import UsageError
from ladderlm.types import Candidate, FloatArray, Sampling, Token

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Grammar(Protocol):
    """What may follow."""

    @property
    def done(self) -> bool: ...

    def allowed(self) -> npt.NDArray[np.bool_]: ...

    def accept(self, token: int) -> None: ...


class Sampler:
    """Draws the tokens of one choice. Its randomness depends on the seed and `index` alone."""

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        *,
        index: int = 0,
        prompt: Sequence[int] = (),
        stop_ids: Collection[int] = (),
        grammar: Grammar | None = None,
    ) -> None:
        self.sampling, self.grammar = sampling, grammar
        self.stop_ids = frozenset((*sampling.stop_ids, *stop_ids))
        self.written = 0
        self.total_logprob = 0.0  # of the tokens drawn, where log-probabilities or best_of ask for it
        self._scored = sampling.logprobs is not None or (sampling.best_of or sampling.n) > sampling.n
        self._bias = _bias(sampling, vocab_size)
        self._stops = np.array([i for i in self.stop_ids if 0 <= i < vocab_size], np.int64)
        self._seen = np.bincount(np.asarray(prompt, np.int64), minlength=vocab_size) > 0
        self._counts = np.zeros(vocab_size, np.int32)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))

    def next(self, logits: FloatArray) -> Token:
        """The next token of the distribution that `logits` (V,) describe."""
        scores = self._adjust(logits)
        token = int(np.argmax(scores)) if self.sampling.temperature == 0 else self._draw(scores)
        self.written += 1
        self._seen[token] = True
        self._counts[token] += 1
        if self.grammar is not None:
            self.grammar.accept(token)
        if not self._scored:
            return Token(token)
        found = describe(logits, token, self.sampling.logprobs or 0)
        self.total_logprob += found.logprob or 0.0
        return found if self.sampling.logprobs is not None else Token(token)

    def _adjust(self, logits: FloatArray) -> FloatArray:
        """A copy of `logits` after bias, penalties and masks."""
        s, scores = self.sampling, logits.copy()
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if s.repetition_penalty != 1:
            seen = scores[self._seen]
            scores[self._seen] = np.where(seen > 0, seen / s.repetition_penalty, seen * s.repetition_penalty)
        if s.presence_penalty or s.frequency_penalty:
            written = np.flatnonzero(self._counts)
            scores[written] -= np.float32(s.presence_penalty) + np.float32(s.frequency_penalty) * self._counts[written]
        if self.grammar is not None:
            allowed = self.grammar.allowed()
            scores[~allowed[: len(scores)]] = -np.inf
        if self.written < s.min_tokens and len(self._stops) < len(scores):
            before = scores[self._stops].copy()
            scores[self._stops] = -np.inf
            if self.grammar is not None and not np.isfinite(scores).any():
                scores[self._stops] = before  # the grammar is complete: nothing but the end may follow
        return scores

    def _draw(self, scores: FloatArray) -> int:
        s = self.sampling
        ids: Ints | None = None  # None: all of them, in order
        if 0 < s.top_k < len(scores):
            ids = _top(scores, s.top_k)
            scores = scores[ids]
        p = np.exp((scores - scores.max()) / np.float32(s.temperature)).astype(np.float64)
        p /= p.sum()
        for choose, limit in ((_typical, s.typical), (_nucleus, s.top_p), (_at_least, s.min_p)):
            chosen = choose(p, limit)
            if chosen is not None:
                ids, p = chosen if ids is None else ids[chosen], p[chosen] / p[chosen].sum()
        sums = np.cumsum(p)
        place = min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(p) - 1)
        return place if ids is None else int(ids[place])


def _bias(sampling: Sampling, vocab_size: int) -> tuple[Ints, FloatArray] | None:
    if not sampling.logit_bias:
        return None
    table = dict(sampling.logit_bias)
    if not all(0 <= i < vocab_size for i in table):
        raise UsageError(f"logit_bias names a token outside 0..{vocab_size - 1}", where="logit_bias")
    return np.array(list(table), np.int64), np.array(list(table.values()), np.float32)


def _top(scores: FloatArray, k: int) -> Ints:
    """Ids of the k largest, ascending; of equal ones the lowest ids."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, equal = np.flatnonzero(scores > threshold), np.flatnonzero(scores == threshold)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def _prefix(p: Doubles, order: Ints, mass: float) -> Ints:
    """The shortest head of `order` that holds `mass`, ascending."""
    count = int(np.searchsorted(np.cumsum(p[order]), mass * (1 - 1e-12))) + 1
    return np.sort(order[:count])


def _nucleus(p: Doubles, top_p: float) -> Ints | None:
    """The likeliest tokens that hold `top_p` of the probability (Holtzman et al. 2020)."""
    if top_p >= 1:
        return None
    # Tokens below (1 - top_p) / V hold less than 1 - top_p together: leave them out of the costly sort.
    likely = np.flatnonzero(p >= (1 - top_p) / len(p))
    return likely[_prefix(p[likely], np.argsort(-p[likely], kind="stable"), top_p)]


def _typical(p: Doubles, mass: float) -> Ints | None:
    """The tokens whose surprise is nearest to the entropy (Meister et al. 2023)."""
    if mass >= 1:
        return None
    surprise = -np.log(np.maximum(p, 1e-300))
    distance = np.abs(surprise - np.sum(p * surprise))
    distance[p == 0] = np.inf
    return _prefix(p, np.argsort(distance, kind="stable"), mass)


def _at_least(p: Doubles, min_p: float) -> Ints | None:
    """The tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""
    return None if min_p <= 0 else np.flatnonzero(p >= min_p * p.max())


# --- Log-probabilities --------------------------------------------------------------------------------------------


def _log_total(logits: FloatArray) -> float:
    """log sum exp, summed in float64."""
    top = float(logits.max())
    return top + float(np.log(np.sum(np.exp(logits - np.float32(top)), dtype=np.float64)))


def logprob(logits: FloatArray, token: int) -> float:
    """The natural-log probability of `token` under softmax(logits)."""
    return float(logits[token]) - _log_total(logits)


def describe(logits: FloatArray, token: int, k: int) -> Token:
    """`token` with its log-probability and the `k` likeliest, likeliest first."""
    total = _log_total(logits)
    likely = _top(logits, min(k, len(logits))) if k else np.zeros(0, np.int64)
    likely = likely[np.argsort(-logits[likely], kind="stable")]
    top = tuple(Candidate(int(i), float(logits[i]) - total) for i in likely)
    return Token(token, float(logits[token]) - total, top)
