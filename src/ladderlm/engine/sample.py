"""From logits to the next token: penalties, mask, temperature, filters, draw.

Order: logit_bias, penalties, grammar and min_tokens; temperature; top_k, typical, top_p, min_p, each on what the one
before left, renormalised (or mirostat in the place of these four); then one draw. Log-probabilities are those of the
model itself, before all of this.

Nothing sorts or partitions a whole vocabulary: `_head` finds the few candidates that can matter first.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ladderlm.engine.penalties import Penalties
from ladderlm.errors import FormatError, LadderError, UsageError
from ladderlm.types import Candidate, FloatArray, Sampling, Token

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

_GROUP = 64  # members of a group at most, where a search goes through groups first
_SMALL = 4096  # entries that are not worth grouping
_LAST = 128  # tokens, or a quarter of all, in which an answer under a grammar is brought to its end
_SLACK = 1e-6  # what rounding may take from a sum of float32 probabilities
_EDGE = 2**14  # floats this near to a cut (0.2 %) are sorted
_COLDEST = 1e-6  # a lower temperature than this is no different
_OPEN = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(bool)
_ADDED = np.where(_OPEN, np.float32(0), np.float32(-np.inf))  # a byte of a mask -> what it adds to eight scores


class Grammar(Protocol):
    """What may follow."""

    @property
    def done(self) -> bool: ...

    def allowed(self, *, closing: bool = False) -> Bits:
        """A bit for each token, the lowest of a byte first. With `closing` those that bring the end nearer, if any."""
        ...

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
        limit: int | None = None,
    ) -> None:
        """`limit`: how many tokens there is room for, where that is known."""
        self.sampling, self.grammar = sampling, grammar
        self.stop_ids = frozenset((*sampling.stop_ids, *stop_ids))
        self.written = 0
        self._closing = math.inf if limit is None else limit - min(_LAST, limit // 4)
        self.total_logprob = 0.0  # of the tokens drawn, where log-probabilities or best_of ask for it
        self._scored = sampling.logprobs is not None or (sampling.best_of or sampling.n) > sampling.n
        self._bias = _bias(sampling, vocab_size)
        self._penalties = Penalties.of(sampling, prompt)
        self._stops = np.array([i for i in self.stop_ids if 0 <= i < vocab_size], np.int64)
        self._mu = 2 * sampling.mirostat_tau  # the surprise, in bits, beyond which mirostat drops a token
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))

    def next(self, logits: FloatArray) -> Token:
        """The next token of the distribution that `logits` (V,) describe.

        Raises FormatError for logits that are not numbers, UsageError where grammar and bias leave no token.
        """
        scores = self._adjust(logits)
        likeliest = int(np.argmax(scores))  # that of NaN, if there is one
        if not math.isfinite(scores[likeliest]):
            raise self._stuck(logits)
        token = likeliest if self.sampling.temperature == 0 else self._draw(scores)
        self.written += 1
        if self._penalties is not None:
            self._penalties.wrote(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        if not self._scored:
            return Token(token)
        found = describe(logits, token, self.sampling.logprobs or 0)
        self.total_logprob += found.logprob or 0.0
        return found if self.sampling.logprobs is not None else Token(token)

    def _adjust(self, logits: FloatArray) -> FloatArray:
        """`logits` after bias, penalties and masks: a copy, if there are any."""
        early = self.written < self.sampling.min_tokens and len(self._stops) < len(logits)
        if self._bias is None and self._penalties is None and self.grammar is None and not early:
            return logits
        scores = logits.copy()
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if self._penalties is not None:
            self._penalties.apply(scores)
        if self.grammar is not None:
            bits = self.grammar.allowed(closing=self.written >= self._closing)
            scores += _ADDED.take(bits, 0).ravel()[: len(scores)]
        if early:
            before = scores[self._stops]
            scores[self._stops] = -np.inf
            if self.grammar is not None and scores.max() == -np.inf:
                scores[self._stops] = before  # the grammar is complete: nothing but the end may follow
        return scores

    def _stuck(self, logits: FloatArray) -> LadderError:
        if not math.isfinite(logits.max()):
            return _no_numbers()
        if self.grammar is not None:
            return UsageError("the grammar admits no token here", where="response_format")
        return UsageError("no token is left to draw", where="logit_bias")

    def _draw(self, scores: FloatArray) -> int:
        """A token from `scores`, whose largest is finite."""
        s, top = self.sampling, scores.max()
        heat = np.float32(max(s.temperature, _COLDEST))
        if s.mirostat_tau:
            return self._mirostat(np.exp((scores - top) / heat))
        ids = _top(scores, s.top_k) if 0 < s.top_k < len(scores) else None
        p = np.exp(((scores if ids is None else scores[ids]) - top) / heat)
        for keep, limit, off in ((_typical, s.typical, 1), (_nucleus, s.top_p, 1), (_at_least, s.min_p, 0)):
            if limit != off:
                p *= keep(p, limit)
        place = _place(p, self._random.random())
        return place if ids is None else int(ids[place])

    def _mirostat(self, p: FloatArray) -> int:
        """Mirostat 2.0 (Basu et al. 2020): a cut that moves so that surprise stays near tau bits.

        `p`: probabilities up to a factor that makes the largest 1.
        """
        s, total = self.sampling, float(p.sum())
        ids = np.flatnonzero(p >= min(1.0, total * 2.0**-self._mu))
        token = int(ids[_place(p[ids], self._random.random())])
        self._mu -= s.mirostat_eta * (-math.log2(p[token] / total) - s.mirostat_tau)
        return token


def _bias(sampling: Sampling, vocab_size: int) -> tuple[Ints, FloatArray] | None:
    if not sampling.logit_bias:
        return None
    table = dict(sampling.logit_bias)
    if not all(0 <= i < vocab_size for i in table):
        raise UsageError(f"logit_bias names a token outside 0..{vocab_size - 1}", where="logit_bias")
    return np.array(list(table), np.int64), np.array(list(table.values()), np.float32)


def _no_numbers() -> FormatError:
    return FormatError("the network gives logits that are not numbers", cure="its weights are damaged or overflow")


# --- Candidates ---------------------------------------------------------------------------------------------------


def _head(x: FloatArray, k: int) -> Ints:
    """Ids, ascending, of at least the k largest, and seldom many more.

    Of the maxima of many groups, k are no smaller than the k-th: so are then at least k entries.
    """
    rows = min(_GROUP, len(x) // (4 * k))
    if rows < 2:
        return np.arange(len(x))
    groups = len(x) // rows
    maxima = x[: rows * groups].reshape(rows, groups).max(axis=0)
    return np.flatnonzero(x >= np.partition(maxima, groups - k)[groups - k])


def _top(x: FloatArray, k: int) -> Ints:
    """Ids of the k largest, ascending; of equal ones the lowest ids."""
    head = _head(x, k)
    values = x[head]
    if len(head) == k:
        return head
    threshold = np.partition(values, len(head) - k)[len(head) - k]
    above, equal = np.flatnonzero(values > threshold), np.flatnonzero(values == threshold)
    return head[np.sort(np.concatenate([above, equal[: k - len(above)]]))]


def _covering(p: FloatArray, rank: FloatArray, share: float) -> Flags:
    """Marks the fewest places of highest `rank`, not negative, that hold `share` of p's sum; of equals the lowest."""
    total = float(p.sum())
    need, before = (share - _SLACK) * total, 0.0
    kept = np.zeros(len(p), np.bool_)
    edge = _head(rank, min(128, len(p)))
    if float(p[edge].sum()) < share * total:
        bits = rank.view(np.int32)  # floats that are not negative are in the order of their bits
        low, high = 0, int(bits.max()) + 1  # those from `low` on hold enough, those from `high` on do not
        while high - low > _EDGE:
            middle = (low + high) // 2
            mass = float((p * (bits >= middle)).sum())
            low, high, before = (middle, high, before) if mass >= need else (low, middle, mass)
        kept = bits >= high
        edge = np.flatnonzero((bits >= low) & ~kept)
    order = edge[np.argsort(-rank[edge], kind="stable")]
    count = int(np.searchsorted(before + np.cumsum(p[order], dtype=np.float64), need)) + 1
    kept[order[:count]] = True
    return kept


def _nucleus(p: FloatArray, top_p: float) -> Flags:
    """Marks the likeliest tokens that hold `top_p` of the probability (Holtzman et al. 2020)."""
    return _covering(p, p, top_p)


def _typical(p: FloatArray, mass: float) -> Flags:
    """Marks the tokens whose surprise is nearest to the entropy (Meister et al. 2023)."""
    share = p / p.sum()
    surprise = -np.log(np.maximum(share, np.float32(1e-38)))
    distance = np.abs(surprise - np.sum(share * surprise))
    return _covering(p, np.where(p > 0, 1 / (distance + np.float32(_SLACK)), np.float32(0)), mass)


def _at_least(p: FloatArray, min_p: float) -> Flags:
    """Marks the tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""
    return p >= np.float32(min_p) * p.max()


def _place(p: FloatArray, at: float) -> int:
    """The place that `at`, in [0, 1), falls on when each place is as wide as its p; never one without width."""
    if len(p) <= _SMALL:
        return _find(np.cumsum(p, dtype=np.float64), at)[0]
    groups = len(p) // _GROUP
    whole = p[: groups * _GROUP].reshape(_GROUP, groups)
    rest = p[groups * _GROUP :]
    group, at = _find(np.cumsum(np.append(whole.sum(axis=0), rest.sum()), dtype=np.float64), at)
    if group == groups:
        return groups * _GROUP + _place(rest, at)
    return _place(whole[:, group], at) * groups + group


def _find(sums: npt.NDArray[np.float64], at: float) -> tuple[int, float]:
    """The first place whose running sum exceeds `at` of the last, and how far into it that is, in [0, 1)."""
    goal = min(at * sums[-1], np.nextafter(sums[-1], 0))
    place = int(np.searchsorted(sums, goal, side="right"))
    before = sums[place - 1] if place else 0.0
    return place, float((goal - before) / (sums[place] - before))


# --- Log-probabilities --------------------------------------------------------------------------------------------


def _log_total(logits: FloatArray) -> float:
    """log sum exp. FormatError where it is not a number."""
    top = logits.max()
    if not math.isfinite(top):
        raise _no_numbers()
    return float(top) + math.log(float(np.exp(logits - top).sum()))


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
