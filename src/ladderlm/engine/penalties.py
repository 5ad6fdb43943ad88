"""What makes a text repeat itself less: penalties on tokens it holds, and DRY on those that would go on a repeat."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ladderlm.types import FloatArray, Sampling

Ids = npt.NDArray[np.int64]

_LONGEST = 128  # tokens back to which a repeat is followed
_MOST = math.log(1e30)  # of a penalty's logarithm: it stays a finite float32


class Penalties:
    """The text so far and what it costs to say it again. A step's work grows with the text, not the vocabulary."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._breakers = frozenset(sampling.dry_breaker_ids)
        self._text = _Growing(np.asarray(prompt, np.int64))
        self._ids = _Growing(np.unique(self._text.values))  # every id once
        self._counts = _Growing(np.zeros(len(self._ids.values), np.int64))  # how often each was written
        self._place = {int(id): place for place, id in enumerate(self._ids.values)}

    @staticmethod
    def of(sampling: Sampling, prompt: Sequence[int]) -> Penalties | None:
        """None where `sampling` has no penalties."""
        s = sampling
        plain = s.repetition_penalty == 1 and not (s.presence_penalty or s.frequency_penalty or s.dry_multiplier)
        return None if plain else Penalties(sampling, prompt)

    def wrote(self, token: int) -> None:
        self._text.append(token)
        if token not in self._place:
            self._place[token] = len(self._place)
            self._ids.append(token)
            self._counts.append(0)
        self._counts.values[self._place[token]] += 1

    def apply(self, scores_V: FloatArray) -> None:
        """Changes the scores of tokens, in place."""
        s, ids = self._sampling, self._ids.values
        if s.repetition_penalty != 1:
            seen = scores_V[ids]
            factor = np.float32(s.repetition_penalty)
            scores_V[ids] = np.where(seen > 0, seen / factor, seen * factor)
        if s.presence_penalty or s.frequency_penalty:
            counts = self._counts.values
            cost = s.presence_penalty * (counts > 0) + s.frequency_penalty * counts
            scores_V[ids] -= cost.astype(np.float32)
        if s.dry_multiplier:
            following, lengths = repeats(self._text.values, self._breakers, s.dry_allowed_length)
            powers = (lengths - s.dry_allowed_length) * math.log(s.dry_base)
            scores_V[following] -= (s.dry_multiplier * np.exp(np.minimum(powers, _MOST))).astype(np.float32)


def repeats(text: Ids, breakers: Collection[int], shortest: int) -> tuple[Ids, Ids]:
    """Tokens that would make the end of `text` repeat more of what stood before: each once, and the repeat's length.

    A token x costs if the last n tokens occurred earlier, followed by x; n is the longest such run, at least
    `shortest`, and holds no breaker. (DRY, "don't repeat yourself", of text-generation-webui, 2024.)
    """
    none = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(text) < 2 or int(text[-1]) in breakers:
        return none
    ends = np.flatnonzero(text[:-1] == text[-1])
    lengths = np.ones(len(ends), np.int64)
    alive = np.arange(len(ends))
    for back in range(1, min(_LONGEST, len(text))):
        token = int(text[-1 - back])
        if token in breakers:
            break
        alive = alive[ends[alive] >= back]
        alive = alive[text[ends[alive] - back] == token]
        if not len(alive):
            break
        lengths[alive] += 1
    long = lengths >= shortest
    following, place = np.unique(text[ends[long] + 1], return_inverse=True)
    longest = np.zeros(len(following), np.int64)
    np.maximum.at(longest, place, lengths[long])
    return following, longest


class _Growing:
    """An array that grows at its end."""

    def __init__(self, values: Ids) -> None:
        self._held, self._count = np.concatenate([values, np.zeros(64, np.int64)]), len(values)

    @property
    def values(self) -> Ids:
        return self._held[: self._count]

    def append(self, value: int) -> None:
        if self._count == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._count] = value
        self._count += 1
