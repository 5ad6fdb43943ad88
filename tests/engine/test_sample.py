"""The sampler against distributions worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ladderlm.engine.penalties import repeats
from ladderlm.engine.sample import Sampler, _nucleus, _place, _top, _typical, describe
from ladderlm.errors import FormatError, UsageError
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


# --- What finds a few among many gives what sorting all would ----------------------------------------------------

SHAPES = [(50_000, 0.3), (50_000, 4.0), (4_097, 1.0), (129, 2.0), (7, 1.0)]
WIDE = [scale * np.random.default_rng(seed).normal(size=size).astype(np.float32)
        for seed, (size, scale) in enumerate(SHAPES)]  # fmt: skip
WIDE += [np.zeros(9_000, np.float32), np.where(np.arange(9_000) % 3000 == 5, 0, -np.inf).astype(np.float32)]


@pytest.mark.parametrize("logits", WIDE, ids=len)
@pytest.mark.parametrize("k", [1, 5, 128, 3000])
def test_top_is_what_sorting_gives(logits: np.ndarray, k: int) -> None:
    k = min(k, len(logits))
    assert _top(logits, k).tolist() == sorted(np.argsort(-logits, kind="stable")[:k].tolist())


@pytest.mark.parametrize("logits", WIDE, ids=len)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.95, 0.9999])
def test_nucleus_is_what_sorting_gives(logits: np.ndarray, share: float) -> None:
    p = np.exp(logits - logits.max())
    kept = _nucleus(p, share)
    mass = p.astype(np.float64) / p.sum(dtype=np.float64)
    assert mass[kept].sum() >= share - 1e-5
    assert mass[kept].sum() - mass[kept].min() < share + 1e-5  # the least of them is needed
    assert p[kept].min() >= p[~kept].max(initial=0.0)
    assert kept.tolist() == _nucleus(p, share).tolist()


@pytest.mark.parametrize("logits", WIDE[:4], ids=len)
def test_typical_is_what_sorting_gives(logits: np.ndarray) -> None:
    p = np.exp(logits - logits.max())
    share = p.astype(np.float64) / p.sum(dtype=np.float64)
    distance = np.abs(-np.log(share) + np.sum(share * np.log(share)))
    kept = _typical(p, 0.6)
    assert distance[kept].max() <= distance[~kept].min() + 1e-3
    assert 0.6 - 1e-5 <= share[kept].sum() < 0.6 + share.max() + 1e-5


def test_a_draw_from_many_follows_their_shares() -> None:
    p = np.zeros(10_001, np.float32)
    p[[3, 64, 5000, 9_999, 10_000]] = [4, 1, 2, 2, 1]
    at = (np.arange(2000) + 0.5) / 2000
    found = np.bincount([_place(p, x) for x in at], minlength=len(p)) / 2000
    np.testing.assert_allclose(found, p / p.sum(), atol=0.001)
    assert p[[_place(p, x) for x in (0.0, np.nextafter(1.0, 0))]].all()


# --- DRY and mirostat ---------------------------------------------------------------------------------------------


def test_repeats() -> None:
    def found(text: list[int], breakers: tuple[int, ...] = (), shortest: int = 1) -> dict[int, int]:
        following, lengths = repeats(np.array(text), breakers, shortest)
        return dict(zip(following.tolist(), lengths.tolist(), strict=True))

    assert found([1, 2, 3, 9, 1, 2, 3]) == {9: 3}
    assert found([2, 3, 8, 1, 2, 3, 9, 1, 2, 3]) == {8: 2, 9: 3}
    assert found([2, 3, 9, 1, 2, 3, 9, 1, 2, 3]) == {9: 6}  # "2 3" of the first run, "2 3 9 1 2 3" of the second
    assert found([1, 2, 3, 9, 1, 2, 3], shortest=4) == {}
    assert found([1, 2, 3, 9, 1, 2, 3], breakers=(1,)) == {9: 2}
    assert found([1, 2, 3, 9, 1, 2, 3], breakers=(3,)) == {}
    assert found([5, 5, 5]) == {5: 2}
    assert found([]) == found([1]) == found([1, 2]) == {}


def test_dry_lowers_what_would_go_on_a_repeat() -> None:
    sampling = Sampling(temperature=0, dry_multiplier=0.5, dry_base=2, dry_allowed_length=2)
    sampler = Sampler(sampling, 10, prompt=[1, 2, 3, 9, 1, 2])
    logits = np.zeros(10, np.float32)
    np.testing.assert_allclose(sampler._adjust(logits)[3], -0.5)
    assert sampler.next(np.eye(10, dtype=np.float32)[3] * 5).id == 3
    np.testing.assert_allclose(sampler._adjust(logits)[[3, 9]], [0, -1.0])  # one longer: twice as much
    endless = Sampler(sampling, 10, prompt=[1] * 2000)
    assert np.isfinite(endless._adjust(logits)).all()


@pytest.mark.parametrize("tau", [3.0, 5.0])
def test_mirostat_holds_the_surprise(tau: float) -> None:
    random = np.random.default_rng(0)
    sampler = Sampler(Sampling(seed=0, mirostat_tau=tau, logprobs=0), 2000)
    surprises = []
    for _ in range(600):
        token = sampler.next((random.normal(size=2000) * 3).astype(np.float32))
        assert token.logprob is not None
        surprises.append(-token.logprob / np.log(2))
    assert np.mean(surprises[100:]) == pytest.approx(tau, abs=0.3)


# --- What cannot be drawn from ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {}, {"top_k": 2, "logit_bias": ((0, 1.0),)}], ids=str)
def test_logits_that_are_no_numbers_are_an_error(bad: float, settings: dict[str, Any]) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(FormatError, match="not numbers"):
        Sampler(Sampling(**settings), 5).next(logits)
    with pytest.raises(FormatError, match="not numbers"):
        describe(logits, 0, 2)


def test_a_mask_that_leaves_nothing_is_an_error() -> None:
    class Closed:
        done = False

        def allowed(self, *, closing: bool = False) -> np.ndarray:
            return np.zeros(1, np.uint8)

        def accept(self, token: int) -> None:
            raise AssertionError

    with pytest.raises(UsageError, match="admits no token"):
        Sampler(Sampling(), 5, grammar=Closed()).next(LOGITS)


@pytest.mark.parametrize(
    "settings", [{"dry_multiplier": -1}, {"dry_base": 0.5}, {"dry_allowed_length": 0}, {"mirostat_tau": -1},
                 {"mirostat_eta": 0}, {"dry_breakers": ("",)}], ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**settings)
