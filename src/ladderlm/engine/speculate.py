"""Speculation: guess the next tokens, let one step check them all, keep those that were right.

Guesses come from three places, none of which is random:
- `prompt`: what followed the last three tokens where they stood before, in the prompt or the answer (prompt lookup;
  Saxena 2023). Edits, summaries and code copy much of what they read.
- `history`: what this engine itself wrote after the same four tokens, for any request: a table of n-grams learned on
  line, the "self" of self-speculation here. Formats and phrases that a model repeats are found there.
- `draft`: the likeliest tokens of a smaller model with the same vocabulary (Leviathan et al. 2023, greedy drafts).

A guess is kept if it equals the token that the sampler draws from the checked row: as the guess does not depend on
the draw, tokens are distributed, and for a seed are, exactly what they are without speculation.

Whether it pays is measured. `Clock` learns what a row costs beside others in a step, `Guesses` how often those of
each source are right; a guess is made only while the chance that it is right exceeds what its row costs, in tokens
that the same time would have given. A source that does not pay rests, twice as long each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.cache import KVCache
from ladderlm.engine.hot import VIRTUAL

Source = Literal["prompt", "history", "draft"]
SOURCES: tuple[Source, ...] = ("prompt", "history", "draft")
GRAM = 3  # tokens that must agree with an earlier place
CONTEXT = 4  # tokens that the history is looked up by
TABLE = 1 << 16  # entries of the history
LONGEST = 15  # tokens guessed at a time
REST = 32  # tokens a source rests the first time that it does not pay; then twice as many, and so on
MARGIN = 1.3  # by how much a guess must pay: what is measured is uncertain, and guessing costs time itself


class Clock:
    """Seconds of a step as base + slope * rows, from the steps so far, old ones forgotten; and of a prompt's row."""

    FORGET = 0.99
    PRIOR = 0.1  # a further row's cost, of a step with one, before anything was measured
    WEIGHT = 10.0  # of what is believed of it, in steps that differ by a row

    def __init__(self) -> None:
        self._share = self.PRIOR  # what is believed of it: steps that are all alike say nothing, and forget nothing
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._base, self._slope = 0.0, 0.0
        self.prompt_row = 0.0  # seconds of a prompt's token in a large step; 0: not known

    def add(self, rows: int, seconds: float) -> None:
        """A step of `rows` single tokens took `seconds`."""
        if self._weight > 5:
            seconds = min(seconds, 2 * self.seconds(rows))  # another process had the cores: not the rows' cost
        f = self.FORGET
        self._weight, self._x, self._y = f * self._weight + 1, f * self._x + rows, f * self._y + seconds
        self._xx, self._xy = f * self._xx + rows * rows, f * self._xy + rows * seconds
        x, y = self._x / self._weight, self._y / self._weight
        spread, shared = self._xx - self._weight * x * x, self._xy - self._weight * x * y
        believed = self._share * y / (1 + self._share * (x - 1))
        slope = (shared + self.WEIGHT * believed) / (spread + self.WEIGHT)
        self._slope = min(max(slope, 0.0), y / x)
        self._base = y - self._slope * x
        self._share = max(0.005, self._slope / self.seconds(1))

    def add_prompt(self, rows: int, prompt_rows: int, seconds: float) -> None:
        """A step of `rows` single tokens and `prompt_rows` of prompts took `seconds`."""
        if prompt_rows >= 16:
            each = max(0.0, seconds - (self.seconds(rows) if rows else 0.0)) / prompt_rows
            self.prompt_row = each if self.prompt_row == 0 else 0.8 * self.prompt_row + 0.2 * each

    def seconds(self, rows: int) -> float:
        return self._base + self._slope * rows

    @property
    def slope(self) -> float:
        return self._slope


class _Rate:
    """How often guesses of one source are right: a moving average; and its rests."""

    __slots__ = ("rests", "until", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.rests, self.until = 0, 0

    def add(self, right: int, wrong: bool, pace: float) -> None:
        self.value = 1 - (1 - self.value) * (1 - pace) ** right
        if wrong:
            self.value *= 1 - pace
        if right:
            self.rests = 0

    def rest_if(self, price: float, written: int) -> None:
        """After this guess none for a while, if it does not pay: not before `until` tokens are written."""
        if self.value <= price:
            self.until = written + (REST << min(self.rests, 10))
            self.rests += 1


class Guesses:
    """What is known of one choice: where its n-grams stand, how its guesses fared, the draft model's cache."""

    def __init__(self, rates: dict[Source, float], learned: int) -> None:
        self.rates = {source: _Rate(min(0.8, max(0.3, value))) for source, value in rates.items()}
        self.source: Source = "prompt"  # of the guess under way
        self.cache: KVCache | None = None  # the draft model's
        self.learned = learned  # tokens that the history has seen, or never will: the prompt
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = GRAM

    def found(self, ids: list[int], most: int) -> list[int]:
        """What followed the last GRAM tokens where they last stood before, as far as `most` tokens."""
        places = self._places
        for end in range(self._indexed, len(ids)):
            places[tuple(ids[end - GRAM : end])] = end
        self._indexed = max(GRAM, len(ids))
        start = places.get(tuple(ids[-GRAM:]))
        if start is None:
            return []
        period = len(ids) - start  # a text that runs in circles goes on so
        return ids[start : start + most] if period >= most else [ids[start + i % period] for i in range(most)]


class Speculation:
    """Guesses for all choices of an engine. `draft` is a backend whose vocabulary is the engine's."""

    def __init__(self, clock: Clock, draft: Backend | None = None) -> None:
        self._clock, self._draft = clock, draft
        self._rates: dict[Source, float] = dict.fromkeys(SOURCES if draft else SOURCES[:2], 0.6)
        self._history = np.full(TABLE, -1, np.int32)
        self._draft_seconds = 0.0  # of a step of the draft model

    def start(self, prompt: int) -> Guesses:
        """For a new choice after `prompt` tokens."""
        return Guesses(self._rates, prompt)

    def propose(self, choices: Sequence[tuple[Guesses, list[int], int]], rows: int) -> list[list[int]]:
        """A guess for each (guesses, prompt and answer so far, longest guess), where it pays; else [].

        `rows` is how many tokens the step has without them.
        """
        total = self._clock.seconds(rows)
        price = MARGIN * rows * self._clock.slope / total if total > 0 else 1.0
        out = [self._look(guesses, ids, most, price) for guesses, ids, most in choices]
        if self._draft is not None:
            left = [i for i, guess in enumerate(out) if not guess]
            drafts = self._drafted([choices[i] for i in left], price, rows / total if total > 0 else 0.0)
            for i, guess in zip(left, drafts, strict=True):
                out[i] = guess
        return out

    def learn(self, guesses: Guesses, ids: list[int], made: int, right: int, ended: bool) -> None:
        """Of `made` guessed tokens `right` were; `ids` is all there is now. `ended`: the answer stopped there."""
        if made:
            rate, wrong = guesses.rates[guesses.source], right < made and not ended
            rate.add(right, wrong, 0.1 if made > 1 else 0.3)
            everywhere = self._rates[guesses.source]
            everywhere = 1 - (1 - everywhere) * 0.98**right
            self._rates[guesses.source] = everywhere * (0.98 if wrong else 1)
        for end in range(max(guesses.learned, CONTEXT), len(ids)):
            self._history[hash(tuple(ids[end - CONTEXT : end])) % TABLE] = ids[end]
        guesses.learned = len(ids)

    def _look(self, guesses: Guesses, ids: list[int], most: int, price: float) -> list[int]:
        for source in ("prompt", "history"):
            length = _length(guesses.rates[source], len(ids), most, price)
            if length:
                found = guesses.found(ids, length) if source == "prompt" else self._remembered(ids, length)
                if found:
                    guesses.source = source
                    guesses.rates[source].rest_if(price, len(ids))
                    return found
        return []

    def _remembered(self, ids: list[int], most: int) -> list[int]:
        out: list[int] = []
        last = ids[-CONTEXT:]
        if len(last) == CONTEXT:
            while len(out) < most:
                token = int(self._history[hash(tuple(last)) % TABLE])
                if token < 0:
                    break
                out.append(token)
                last = [*last[1:], token]
        return out

    # --- The draft model ------------------------------------------------------------------------------------------

    def _drafted(
        self, choices: Sequence[tuple[Guesses, list[int], int]], price: float, per_second: float
    ) -> list[list[int]]:
        """Greedy continuations by the draft model, written for all choices together."""
        out: list[list[int]] = [[] for _ in choices]
        cost = price + MARGIN * per_second * self._draft_seconds / max(1, len(choices))
        lengths = [_length(g.rates["draft"], len(ids), most, cost) for g, ids, most in choices]
        ready = [i for i, length in enumerate(lengths) if length and self._caught_up(*choices[i][:2])]
        assert self._draft is not None
        ready = ready[: self._draft.max_rows]
        for step in range(max((lengths[i] for i in ready), default=0)):
            ready = [i for i in ready if lengths[i] > step]
            pieces = []
            for i in ready:
                guesses, ids, _ = choices[i]
                assert guesses.cache is not None
                if not step:
                    guesses.source = "draft"
                    guesses.rates["draft"].rest_if(cost, len(ids))
                pieces.append(Piece(guesses.cache, [out[i][-1] if step else ids[-1]], 0))
            began = time.perf_counter()
            logits = self._draft.run(pieces)
            taken = time.perf_counter() - began
            self._draft_seconds = 0.9 * self._draft_seconds + 0.1 * taken if self._draft_seconds else taken
            for i, row in zip(ready, logits, strict=True):
                out[i].append(int(np.argmax(row)))
        return out

    def _caught_up(self, guesses: Guesses, ids: list[int]) -> bool:
        """Brings the draft model's cache to all but the last of `ids`, a step's worth at a time."""
        assert self._draft is not None
        if ids[0] == VIRTUAL:
            return False  # an adapter's tokens mean nothing to it
        cache = guesses.cache = guesses.cache or self._draft.cache()
        same = len(cache)
        while same and cache.ids[:same] != ids[:same]:  # guesses that were wrong: at most LONGEST
            same -= 1
        cache.truncate(min(same, len(ids) - 1))
        missing = ids[len(cache) : -1][: self._draft.max_rows]
        if missing:
            self._draft.run([Piece(cache, missing, len(missing))])
        return len(cache) == len(ids) - 1


def _length(rate: _Rate, written: int, most: int, price: float) -> int:
    """How many tokens to guess: as long as all of them are right more often than a row costs; after a rest, one."""
    if written < rate.until or most <= 0:
        return 0
    if rate.value <= price:
        return 1
    if rate.value >= 1 or price <= 0:
        return min(most, LONGEST)
    return min(most, LONGEST, int(math.log(price) / math.log(rate.value)))
