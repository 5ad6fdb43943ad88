"""The sampler against distributions worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ladderlm.engine.sample import Sampler, describe
from ladderlm.errors import UsageError
from ladderlm.types import Sampling

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = np.log(P).astype(np.float32) + np.float32(3)


def frequencies(logits: np.ndarray = LOGITS, draws: int = 4000, **settings: Any) -> np.ndarray:
    """How often each token is drawn first."""
    sampler = Sampler(Sampling(seed=1, **settings), len(logits))
    found = [sampler._draw(sampler._adjust(logits)) for _ in range(draws)]
    return np.bincount(found, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / np.sum(P**2)),
        ({"top_k": 2}, np.array([4, 3, 0, 0, 0]) / 7),
        ({"top_p": 0.7}, np.array([4, 3, 0, 0, 0]) / 7),
        ({"top_p": 0.71}, np.array([40, 30, 15, 0, 0]) / 85),
        ({"top_p": 0.01}, np.array([1, 0, 0, 0, 0])),
        ({"min_p": 0.3}, np.array([40, 30, 15, 0, 0]) / 85),
        # entropy 1.392; surprises 0.916, 1.204, 1.897, 2.303, 2.996: nearest first 1, 0, 2
        ({"typical": 0.3}, np.array([0, 1, 0, 0, 0])),
        ({"typical": 0.6}, np.array([4, 3, 0, 0, 0]) / 7),
        ({"top_k": 3, "top_p": 0.8}, np.array([4, 3, 0, 0, 0]) / 7),  # of the three left, two hold 0.82
        ({"logit_bias": ((0, -100.0),)}, np.array([0, 30, 15, 10, 5]) / 60),
    ],
    ids=str,
)
def test_the_distribution_drawn_from(settings: dict[str, Any], expected: np.ndarray) -> None:
    found = frequencies(**settings)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not found[expected == 0].any()


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampler = Sampler(Sampling(temperature=0), 4)
    assert sampler.next(np.array([1, 5, 5, 0], np.float32)).id == 1


def test_top_k_keeps_exactly_k_of_equals() -> None:
    found = frequencies(np.zeros(6, np.float32), top_k=2)
    assert np.flatnonzero(found).tolist() == [0, 1]


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 1.0, 1.0], np.float32)
    repeated = Sampler(Sampling(repetition_penalty=2), 4, prompt=[0, 1])
    np.testing.assert_allclose(repeated._adjust(logits), [1, -4, 1, 1])
    counted = Sampler(Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), 4, prompt=[2])
    counted.next(logits)
    counted.next(logits)
    np.testing.assert_allclose(counted._adjust(logits), [2 - 0.5 - 2 * 0.25, -2, 1, 1])


def test_seeds() -> None:
    def draws(seed: int | None, index: int = 0) -> list[int | None]:
        sampler = Sampler(Sampling(seed=seed), 50, index=index)
        return [sampler.next(np.zeros(50, np.float32)).id for _ in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1) != draws(1, index=1)
    assert draws(-1) == draws(-1)
    assert draws(None) != draws(None)


def test_logprobs_are_those_of_the_model_before_everything() -> None:
    sampler = Sampler(Sampling(temperature=0, logprobs=3, logit_bias=((4, 100.0),)), 5)
    token = sampler.next(LOGITS)
    assert token.id == 4
    assert token.logprob == pytest.approx(np.log(0.05), abs=1e-6)
    assert [c.id for c in token.top] == [0, 1, 2]
    assert np.exp([c.logprob for c in token.top]) == pytest.approx([0.4, 0.3, 0.15], abs=1e-6)


def test_logprobs_of_a_large_vocabulary_sum_to_one() -> None:
    logits = (np.random.default_rng(0).normal(size=50_000) * 5 + 1000).astype(np.float32)
    found = describe(logits, 7, 50_000)
    assert np.exp([c.logprob for c in found.top]).sum() == pytest.approx(1, abs=1e-5)
    assert len(found.top) == 50_000


def test_a_bias_for_no_token_is_refused() -> None:
    with pytest.raises(UsageError):
        Sampler(Sampling(logit_bias=((5, 1.0),)), 5)
