"""Speculation changes when tokens come, never which; and stops where it does not pay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from engine_models import EOS, KindWeights, byte_tokenizer, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.engine.speculate import LONGEST, PRIOR, Clock, Guesses, Speculation
from ladderlm.errors import UsageError
from ladderlm.types import Completion, Sampling

PROMPT = [*range(40, 60), *range(40, 60), 40, 41, 42]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4, "top_p": 0.9},
    "filters": {"temperature": 0.6, "top_k": 20, "min_p": 0.02},
    "logprobs": {"temperature": 0, "logprobs": 2, "prompt_logprobs": 1},
    "several": {"n": 3},
    "best of": {"n": 2, "best_of": 4, "temperature": 0.5},
    "grammar": {"response_format": {"type": "regex", "regex": "(ab|abc|[0-9]{1,3},)*"}, "temperature": 0.8},
    "min tokens": {"min_tokens": 20},
}


class AlwaysGuess(Clock):
    """A clock by which a step lasts for ever and a row costs nothing: every guess pays."""

    def seconds(self, rows: int) -> float:
        return 1e9

    @property
    def slope(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    """Without speculation; with; with a good draft model; with a bad one. The last three guess as often as they can."""
    arch, tokenizer = tiny(), byte_tokenizer()
    weights = KindWeights(arch)

    def backend(seed: int = 0) -> Any:
        return on_cpu(arch, weights if seed == 0 else KindWeights(arch, seed=seed), threads=1)

    made = [Engine(backend(), tokenizer, speculate=False), Engine(backend(), tokenizer)]
    made += [Engine(backend(), tokenizer, draft=backend(seed)) for seed in (0, 1)]
    for engine in made[1:]:
        clock = AlwaysGuess()
        engine._scheduler._clock = clock
        assert engine._scheduler._speculation is not None
        engine._scheduler._speculation._clock = clock
    yield made
    for engine in made:
        engine.close()


def write(engine: Engine, ids: list[int], **sampling: Any) -> Completion:
    return Completion.fold(engine.generate(ids, Sampling(**{"seed": 5, "max_tokens": 60, **sampling})))


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_without_speculation(case: str, engines: list[Engine]) -> None:
    plain, *guessing = engines
    expected = write(plain, PROMPT, **CASES[case])
    for engine in guessing:
        for _ in range(2):  # the second time the history knows the answer
            found = write(engine, PROMPT, **CASES[case])
            assert found.choices == expected.choices
            assert found.usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 117, None])
def test_limits_and_stop_ids_hold_inside_a_guess(limit: int | None, engines: list[Engine]) -> None:
    banned = ((EOS, -1000.0),)
    expected = write(engines[0], PROMPT, temperature=0, max_tokens=limit, logit_bias=banned).choices[0]
    for engine in engines[1:]:
        assert write(engine, PROMPT, temperature=0, max_tokens=limit, logit_bias=banned).choices[0] == expected
        for stop in set(expected.ids[:6]):
            ends = {"temperature": 0, "max_tokens": limit, "logit_bias": banned, "stop_ids": (stop,)}
            assert write(engine, PROMPT, **ends).choices == write(engines[0], PROMPT, **ends).choices


def test_guesses_are_made_and_some_are_right(engines: list[Engine]) -> None:
    """With the model itself as its draft nearly all are; steps are then far fewer than tokens."""
    for engine, most in ((engines[2], 20), (engines[0], 60)):
        steps, run = 0, engine._backend.run

        def counted(pieces: Any, run: Any = run) -> Any:
            nonlocal steps
            steps += 1
            return run(pieces)

        engine._backend.run = counted  # type: ignore[method-assign]
        write(engine, list(range(70, 90)), temperature=0, max_tokens=60, logit_bias=((EOS, -1000.0),))
        engine._backend.run = run  # type: ignore[method-assign]
        assert steps <= most


def test_what_is_kept_after_rejected_guesses_is_right(engines: list[Engine]) -> None:
    """A second turn starts from the first one's keys and values and gives the logits of a fresh reading."""
    plain, bad = engines[0], engines[3]
    first = write(bad, PROMPT, seed=8, max_tokens=40, logit_bias=((EOS, -1000.0),)).choices[0].ids
    turn = [*PROMPT, *first, 1, 2, 3]
    found = write(bad, turn, seed=9, max_tokens=20, logprobs=3)
    assert found.usage.cached_tokens == len(PROMPT) + 39  # the last token was drawn, never fed
    assert found.choices == write(plain, turn, seed=9, max_tokens=20, logprobs=3).choices


def test_the_clock_learns_what_a_row_costs() -> None:
    clock, random = Clock(), np.random.default_rng(0)
    for _ in range(300):
        rows = int(random.integers(1, 9))
        clock.add(rows, (0.010 + 0.0004 * rows) * random.uniform(0.9, 1.1))
    assert clock.slope == pytest.approx(0.0004, rel=0.3)
    assert clock.seconds(4) == pytest.approx(0.0116, rel=0.1)


def simulate(row_cost: float, right: float, tokens: int = 4000) -> float:
    """Tokens per second with speculation over without, where guesses are right with a probability of `right`."""
    clock, random = Clock(), np.random.default_rng(1)
    speculation = Speculation(clock)
    guesses, ids, seconds = speculation.start(0), [1, 2, 3, 1, 2, 3, 1, 2], 0.0
    begin = len(ids)
    while len(ids) - begin < tokens:
        (draft,) = speculation.propose([(guesses, ids, 64)], 1)
        clock.add(1 + len(draft), 1 + row_cost * len(draft))
        seconds += 1 + row_cost * len(draft)
        hits = 0
        while hits < len(draft) and random.random() < right:
            hits += 1
        ids += [1, 2, 3] * 9
        del ids[-27 + (hits + 1) :]
        speculation.learn(guesses, ids, len(draft), hits, ended=False)
        ids[-1] = ids[-4]  # the text stays in its circle: there is always something to guess
    return tokens / seconds


@pytest.mark.parametrize(
    ("row_cost", "right", "least"),
    [(0.1, 0.95, 2.5), (0.1, 0.6, 1.4), (0.1, 0.02, 0.97), (0.5, 0.1, 0.97), (1.0, 0.5, 0.97), (1.0, 0.0, 0.97)],
)
def test_it_pays_or_stops(row_cost: float, right: float, least: float) -> None:
    assert simulate(row_cost, right) >= least


def test_the_last_place_with_the_same_tokens_is_continued() -> None:
    ids = [1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 1, 2, 3]
    guesses = Guesses(PRIOR, 0)
    assert guesses.place(ids) == (9, 3)
    assert guesses.place([*ids, 8, 8, 8]) == (16, 2)
    assert Guesses(PRIOR, 0).place([1, 2, 3, 7, 2, 3, 8, 1, 2, 3]) == (3, 3)  # three that agree, not the later two
    assert Guesses(PRIOR, 0).place([1, 2, 3, 4]) == (0, 0)
    (circle,) = Speculation(AlwaysGuess()).propose([(Guesses(PRIOR, 0), [7, 8, 7, 8, 7], LONGEST)], 1)
    assert circle == [8, 7] * 7 + [8]


def test_the_more_tokens_agree_the_longer_the_guess() -> None:
    clock = Clock()
    for rows in range(1, 9):
        clock.add(rows, 1 + 0.15 * rows)
    passage = list(range(100, 140))
    lengths = []
    for agree in (2, 4, 8):
        ids = [*passage, 7, *passage[:agree]]
        (guess,) = Speculation(clock).propose([(Guesses(PRIOR, 0), ids, LONGEST)], 1)
        assert guess == passage[agree : agree + len(guess)]
        lengths.append(len(guess))
    assert 1 <= lengths[0] < lengths[1] < lengths[2]


def test_a_draft_model_needs_the_same_vocabulary() -> None:
    arch, other = tiny(), tiny(vocab_size=300)
    with pytest.raises(UsageError, match="vocabulary"):
        Engine(on_cpu(arch, KindWeights(arch)), draft=on_cpu(other, KindWeights(other)))
