"""Interpolated Kneser-Ney over token ids (Chen & Goodman 1999, section 4.1.6, one discount per order).

A table of an order n holds its distinct n-grams as sorted 64-bit keys, so that counting is sorting and looking up is
binary search: everything is vectorised. p(w | h) = (max(c(hw) - D, 0) + D * N1+(h.) * p(w | h')) / c(h), where the
highest order counts occurrences and the lower ones how many different words precede.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ladderlm.errors import UsageError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Order:
    """Distinct n-grams of one order: `keys` sorted; `counts` of each; and of each distinct context its totals."""

    keys: Ids
    counts: Ids
    contexts: Ids
    totals: Ids  # sum of counts of the n-grams that begin with the context
    kinds: Ids  # how many different words follow the context
    discount: float


class KneserNey:
    """An n-gram model. `vocab_size` makes it a proper distribution over all ids; by default the largest id seen + 1."""

    def __init__(self, order: int = 3, vocab_size: int | None = None) -> None:
        if order < 1:
            raise UsageError("order must be at least 1", where=f"order={order}")
        self.order = order
        self.vocab_size = vocab_size or 0
        self._orders: list[_Order] = []

    def fit(self, ids: Sequence[int] | Ids) -> KneserNey:
        """Counts `ids`, one long document. Raises UsageError when too short or too wide to key."""
        x = np.asarray(ids, dtype=np.int64)
        if len(x) < self.order:
            raise UsageError("too few tokens to count", where=f"{len(x)} tokens, order {self.order}")
        self.vocab_size = max(self.vocab_size, int(x.max()) + 1)
        if self.vocab_size**self.order >= 2**63:
            raise UsageError("vocabulary too large for this order", where=f"{self.vocab_size} ^ {self.order}")
        keys, counts = np.unique(self._keys(x, self.order), return_counts=True)
        self._orders = [self._order(keys, counts)]
        for n in range(self.order - 1, 0, -1):
            # a lower order counts the different words before each n-gram: the distinct (n+1)-grams without their first
            keys, counts = np.unique(keys % self.vocab_size**n, return_counts=True)
            self._orders.insert(0, self._order(keys, counts))
        return self

    def _keys(self, x: Ids, n: int) -> Ids:
        keys = np.zeros(len(x) - n + 1, dtype=np.int64)
        for i in range(n):
            keys = keys * self.vocab_size + x[i : len(x) - n + 1 + i]
        return keys

    def _order(self, keys: Ids, counts: Ids) -> _Order:
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once and twice else 0.5
        contexts, first = np.unique(keys // self.vocab_size, return_index=True)
        return _Order(
            keys, counts, contexts, np.add.reduceat(counts, first), np.diff([*first, len(keys)]), discount
        )  # fmt: skip

    def probabilities(self, ids: Sequence[int] | Ids) -> Floats:
        """p of each token of `ids` given up to order - 1 before it (fewer at the beginning)."""
        x = np.asarray(ids, dtype=np.int64)
        if not self._orders:
            raise UsageError("the model has not been fitted")
        if len(x) and (x.min() < 0 or x.max() >= self.vocab_size):
            raise UsageError("an id beyond the vocabulary", where=f"0 to {self.vocab_size - 1}")
        p = np.full(len(x), 1 / self.vocab_size)
        for n in range(1, min(self.order, len(x)) + 1):
            table = self._orders[n - 1]
            keys = self._keys(x, n)
            counts = _found(table.keys, table.counts, keys)
            totals = _found(table.contexts, table.totals, keys // self.vocab_size)
            kinds = _found(table.contexts, table.kinds, keys // self.vocab_size)
            seen, lower = totals > 0, p[n - 1 :]
            mixed = np.maximum(counts - table.discount, 0) + table.discount * kinds * lower
            p[n - 1 :] = np.where(seen, mixed / np.maximum(totals, 1), lower)
        return p

    def bits(self, ids: Sequence[int] | Ids) -> float:
        """The bits it takes to say `ids`, one document."""
        return float(-np.log2(self.probabilities(ids)).sum())

    def perplexity(self, ids: Sequence[int] | Ids) -> float:
        return math.exp(self.bits(ids) * math.log(2) / len(ids))


def _found(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """values[where keys == wanted], 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
