"""Speculation: guess the next tokens, let one step check them all, keep those that were right.

Guesses come from three places, none of which is random:
- `prompt`: what followed the last two tokens or more where they stood before, in the prompt or the answer (prompt
  lookup; Saxena 2023). Edits, summaries and code copy much of what they read. The more tokens agree, the likelier is
  the next: how often is learned for each number of them.
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

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.cache import KVCache
from ladderlm.engine.hot import VIRTUAL

Source = Literal["prompt", "history", "draft"]
AGREE = 6  # tokens that agree with an earlier place, beyond which more of them say nothing new
Kind = tuple[Source, int]  # of a guessed token: from where, and how many tokens before it agree
HISTORY: Kind = ("history", 0)
DRAFT: Kind = ("draft", 0)
PRIOR: dict[Kind, float] = {  # how often each is right, before anything was seen
    ("prompt", 2): 0.35, ("prompt", 3): 0.6, ("prompt", 4): 0.7, ("prompt", 5): 0.8, ("prompt", AGREE): 0.9,
    HISTORY: 0.6, DRAFT: 0.6,
}  # fmt: skip
CONTEXT = 4  # tokens that the history is looked up by
TABLE = 1 << 16  # entries of the history
LONGEST = 15  # tokens guessed at a time
TOGETHER = 4  # rows that the kernels compute together: the fifth costs nearly what all from the fifth to the eighth do
REST = 32  # tokens a source rests the first time that it does not pay; then twice as many, and so on
MARGIN = 1.3  # by how much a guess must pay: what is measured is uncertain, and guessing costs time itself


class Clock:
    """Seconds of a step as base + slope * rows, from the steps so far, old ones forgotten; and of a prompt's row."""

    FORGET = 0.99
    PRIOR = 0.15  # a further row's cost, of a step with one, before anything was measured
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
    """How often guesses of one kind are right: a moving average; and its rests."""

    __slots__ = ("rests", "until", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.rests, self.until = 0, 0

    def add(self, right: bool, pace: float) -> None:
        self.value += pace * (right - self.value)
        if right:
            self.rests = 0

    def rest_if(self, price: float, written: int) -> None:
        """After this guess none for a while, if it does not pay: not before `until` tokens are written."""
        if self.value <= price:
            self.until = written + (REST << min(self.rests, 10))
            self.rests += 1


class Guesses:
    """What is known of one choice: where its n-grams stand, how its guesses fared, the draft model's cache."""

    def __init__(self, rates: dict[Kind, float], learned: int) -> None:
        self.rates = {kind: _Rate(min(0.9, max(0.3, value))) for kind, value in rates.items()}
        self.kind: Kind = ("prompt", 2)  # of the first token of the guess under way
        self.cache: KVCache | None = None  # the draft model's
        self.learned = learned  # tokens that the history has seen, or never will: the prompt
        self._places: dict[tuple[int, ...], int] = {}  # where two or three tokens last ended
        self._indexed = 2

    def place(self, ids: list[int]) -> tuple[int, int]:
        """Where the last tokens stood before, three if they did, else two: the end of it, and how many tokens agree.

        (0, 0) where there is no such place. It costs the same however long `ids` is, once they are indexed.
        """
        places, count = self._places, len(ids)
        for end in range(self._indexed, count):
            places[ids[end - 2], ids[end - 1]] = places[tuple(ids[end - 3 : end])] = end
        self._indexed = max(2, count)
        if count < 2:
            return 0, 0
        start = places.get((ids[-2], ids[-1]))
        if start is None:
            return 0, 0
        start = places.get(tuple(ids[-3:]), start)
        agree = 2
        while agree < min(AGREE, start) and ids[start - agree - 1] == ids[count - agree - 1]:
            agree += 1
        return start, agree

    def begin(self, kind: Kind, price: float, written: int) -> None:
        """A guess is made."""
        self.kind = kind
        self.rates[kind].rest_if(price, written)

    def length(self, kind: Kind, written: int, most: int, price: float) -> int:
        """How many tokens to guess: as long as all of them are right more often than a row costs; after a rest, one."""
        rate = self.rates[kind]
        if written < rate.until or most <= 0:
            return 0
        count, chance, most = 0, rate.value, min(most, LONGEST)
        while count < most and chance > price:
            count += 1
            chance *= self.rates[_following(kind, count)].value
        if count >= TOGETHER:
            count -= (1 + count) % TOGETHER
        return max(1, count)


def _following(kind: Kind, count: int) -> Kind:
    """The kind of the guessed token `count` after the first."""
    return ("prompt", min(AGREE, kind[1] + count)) if kind[1] else kind


class Speculation:
    """Guesses for all choices of an engine. `draft` is a backend whose vocabulary is the engine's."""

    def __init__(self, clock: Clock, draft: Backend | None = None) -> None:
        self._clock, self._draft = clock, draft
        self._rates: dict[Kind, float] = dict(PRIOR)
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
        for i in range(right if ended else min(made, right + 1)):
            kind = _following(guesses.kind, i)
            guesses.rates[kind].add(i < right, 0.1 if made > 1 else 0.3)
            self._rates[kind] += 0.02 * ((i < right) - self._rates[kind])
        for end in range(max(guesses.learned, CONTEXT), len(ids)):
            self._history[hash(tuple(ids[end - CONTEXT : end])) % TABLE] = ids[end]
        guesses.learned = len(ids)

    def _look(self, guesses: Guesses, ids: list[int], most: int, price: float) -> list[int]:
        start, agree = guesses.place(ids)
        if agree and (length := guesses.length(("prompt", agree), len(ids), most, price)):
            guesses.begin(("prompt", agree), price, len(ids))
            period = len(ids) - start  # a text that runs in circles goes on so
            return ids[start : start + length] if period >= length else [ids[start + i % period] for i in range(length)]
        length = guesses.length(HISTORY, len(ids), most, price)
        if length and (found := self._remembered(ids, length)):
            guesses.begin(HISTORY, price, len(ids))
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
        lengths = [guesses.length(DRAFT, len(ids), most, cost) for guesses, ids, most in choices]
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
                    guesses.begin(DRAFT, cost, len(ids))
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
