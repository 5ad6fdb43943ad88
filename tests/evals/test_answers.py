"""What written answers are worth, beside the packages that define it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladderlm.data.asking import Asking
from ladderlm.data.records import to_record
from ladderlm.errors import UsageError
from ladderlm.evals.answers import best_f1, chrf, exact, f1, score, told_spans

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "ran", "Über", "a."]), max_size=8).map(" ".join)


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_chrf_is_sacrebleus(said: str, wanted: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="no sacrebleu")
    theirs = sacrebleu.CHRF(eps_smoothing=False).sentence_score(said, [wanted]).score / 100
    assert chrf(said, wanted) == pytest.approx(theirs, abs=1e-6)


def test_squads_f1_and_exact_match() -> None:
    assert exact("The Cat!", ["cat"]) == 1
    assert exact("cats", ["cat"]) == 0
    assert best_f1("a big cat", ["small cat", "big dog house"]) == pytest.approx(0.5)
    assert f1([], []) == 1
    assert f1(["x"], []) == 0


def test_every_kind_answers_itself_best() -> None:
    rows = [
        {"text": "Good.", "label": "pos"},
        {"tokens": ["Bob", "ran"], "tags": ["B-person", "O"]},
        {"tokens": ["It", "ran"], "tags": ["O", "O"]},
        {"context": "Bob ran.", "question": "Who?", "answers": ["Bob"]},
        {"context": "Bob ran.", "question": "Where?", "answers": []},
        {"source": "ein Haus", "target": "a house"},
        {"prompt": "Say a.", "completion": "aaa"},
    ]
    records = [to_record(r, "x", "") for r in rows]
    asking = Asking.of(records)
    for record in records:
        assert score(record, asking.answer(record)) == 1
        wrong = "person: Eve" if record.kind == "spans" else "something else entirely"
        assert score(record, wrong) < 0.3
        assert asking.prompt(record)
    assert told_spans("person: Bob\nnonsense\nplace: a: b") == [("person", "Bob"), ("place", "a: b")]


def test_templates_take_the_place_of_the_usual_words() -> None:
    record = to_record({"source": "ein Haus", "target": "a house"}, "x", "")
    assert Asking.of([record], "English: {source}").prompt(record) == "English: ein Haus"
    with pytest.raises(UsageError, match="names no field"):
        Asking.of([record], "English:")
