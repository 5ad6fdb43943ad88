"""What the word "helped" is worth, and outcomes on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ladderlm.errors import FormatError, UsageError
from ladderlm.evals import outcome
from ladderlm.evals.helped import Scored, balanced, by_chance, compare_scored, did_it_help
from ladderlm.evals.outcome import Measured, Outcome, Sample
from ladderlm.types import Run


def test_chance_earns_the_word_in_less_than_one_of_twenty() -> None:
    rng = np.random.default_rng(0)
    for items in (10, 40):
        said = 0
        for seed in range(400):
            before, after = (rng.integers(0, 2, items).astype(float).tolist() for _ in range(2))
            said += did_it_help("accuracy", before, after, seed=seed).verdict == "helped"
        assert said <= 400 * 0.03


def test_signs_by_hand() -> None:
    assert by_chance([1, 1, 1]) == 1 / 8
    assert by_chance([1, -1]) == pytest.approx(0.75)
    assert by_chance([0.0, 0.0]) == 1
    assert by_chance([1.0] * 30) < 0.001
    assert did_it_help("x", [0] * 5, [1] * 5).verdict == "no evidence"  # 1 of 32 by chance
    assert did_it_help("x", [0] * 6, [1] * 6).verdict == "helped"


def test_one_label_for_all_is_worth_one_of_the_labels() -> None:
    truth = ["a"] * 9 + ["b"]
    found = balanced(list(map(str, range(10))), truth, ["a"] * 10)
    assert sum(found.values) / sum(found.sizes) == pytest.approx(0.5)
    found = balanced(list(map(str, range(10))), truth, truth)
    assert sum(found.values) / sum(found.sizes) == pytest.approx(1.0)


def made(before: float, after: float, kept: float) -> Outcome:
    items = tuple(map(str, range(12)))
    rng = np.random.default_rng(0)

    def side(task: float, general: float) -> Measured:
        noise = rng.normal(0, 0.01, (2, 12))
        return Measured(
            (Scored("score", items, tuple((task + noise[0]).tolist())),),
            (Scored("bits", items, tuple((general + noise[1]).tolist()), (2.0,) * 12, False),),
            (Sample("Hello?", "Hi.", f"It is {task}."),),
        )

    return Outcome("new", "old", "", side(before, 1.0), side(after, kept), {"wall_seconds": 3.0})


def test_the_sentence_tells_what_was_lost(tmp_path: Path) -> None:
    found = made(0.2, 0.6, 1.4)
    assert found.verdict == "helped"
    assert found.sentence.startswith("It helped: score went from ")
    assert "It forgot: bits went from " in found.sentence
    assert "no evidence that it forgot" in made(0.2, 0.6, 0.98).sentence
    assert made(0.6, 0.2, 1.0).verdict == "harmed"
    run = Run(tmp_path)
    found.save(run)
    assert outcome.load(run) == found
    (tmp_path / outcome.FILE).write_text("[]")
    with pytest.raises(FormatError, match="not a run's outcome"):
        outcome.load(run)


def test_other_items_are_not_paired() -> None:
    with pytest.raises(UsageError, match="cannot be paired"):
        compare_scored(Scored("x", ("1",), (1.0,)), Scored("x", ("2",), (1.0,)))
