"""Verifiable rewards, answer by answer."""

from __future__ import annotations

import pytest

from ladderlm.data.records import make_record
from ladderlm.errors import FormatError
from ladderlm.train.best import best_answers
from ladderlm.train.checks import check, checkable, meets, same
from ladderlm.train.rollout import Answer
from ladderlm.types import Record

SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
}


def record(**fields: object) -> Record:
    return make_record("completion", {"prompt": "p", "completion": "c", **fields}, source="t")


@pytest.mark.parametrize(
    ("wanted", "text", "right"),
    [
        ("12", "The sum is 12.", True), ("12", "12 apples of 30", False), ("-3", "5 - 8 = -3", True),
        ("3", "8-5 gives 8-5=3", True), ("1,200", "1200", True), ("2.5", "2.50", True), ("7", "none", False),
        ("5", "8-5", True), ("Paris", " paris!", True), ("Paris", "Paris, France", False),
        ("He sold 48.\n#### 72", "72", True),
    ],
)  # fmt: skip
def test_what_should_come_out(wanted: str, text: str, right: bool) -> None:
    assert same(wanted, text) is right


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ({"name": "Ann", "age": 3}, True), ({"name": "Ann", "age": 3.0}, True), ({"name": "Ann"}, False),
        ({"name": "", "age": 3}, False), ({"name": "Ann", "age": -1}, False), ({"name": "Ann", "age": True}, False),
        ({"name": "Ann", "age": 3, "x": 1}, False), ([1], False), ("Ann", False),
    ],
)  # fmt: skip
def test_schemas(value: object, right: bool) -> None:
    assert meets(value, SCHEMA) is right


def test_more_of_schemas() -> None:
    assert meets([1, 2], {"items": {"type": "integer"}, "maxItems": 2})
    assert not meets([1, 1], {"uniqueItems": True})
    assert meets("a1", {"anyOf": [{"type": "null"}, {"pattern": "^a"}], "not": {"const": "b"}})
    assert not meets(1, {"enum": [True]})
    assert not meets(5, {"exclusiveMaximum": 5})
    assert not meets(3, False)


def test_the_reward_is_the_share_of_checks_passed() -> None:
    both = record(schema=SCHEMA, answer='{"name": "Ann", "age": 3}')
    assert check(both, '```json\n{"age": 3, "name": "Ann"}\n```') == 1.0
    assert check(both, '{"age": 4, "name": "Ann"}') == 0.5
    assert check(both, "Ann is 3") == 0.0
    assert check(both, "[" * 100_000) == 0.0
    assert check(record(pattern=r"yes|no"), " yes ") == 1.0
    assert check(record(pattern=r"yes|no"), "yes, no") == 0.0


def test_code_is_tested() -> None:
    asked = record(tests="assert double(4) == 8")
    assert check(asked, "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.") == 1.0
    assert check(asked, "def double(x): return x") == 0.0


def test_a_record_must_hold_a_sound_check() -> None:
    checkable(record(pattern="a+"))
    for broken in (record(), record(pattern="("), record(schema="object")):
        with pytest.raises(FormatError):
            checkable(broken)


def test_the_best_answer_of_each_prompt() -> None:
    def answer(prompt: int, tokens: int, reward: float, stopped: bool = True) -> Answer:
        return Answer(prompt, tuple(range(tokens)), (0.0,) * tokens, "", stopped, reward)

    answers = [answer(0, 5, 1.0), answer(0, 3, 1.0), answer(0, 2, 0.5), answer(1, 4, 0.0), answer(2, 9, 1.0, False)]
    assert best_answers(answers, checked=True) == [answers[1]]
    assert best_answers(answers, checked=False) == [answers[1], answers[3]]
