"""Answers under a grammar parse, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from engine_models import byte_tokenizer

from ladderlm.engine.engine import Engine
from ladderlm.engine.grammar import Grammars
from ladderlm.errors import UsageError
from ladderlm.types import Completion, Sampling

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}, "cold": {"type": "boolean"}},
    "required": ["city", "cold"],
    "additionalProperties": False,
}


def answer(engine: Engine, form: dict[str, Any], seed: int = 0, **settings: Any) -> tuple[str, str | None]:
    sampling = Sampling(**{"seed": seed, "max_tokens": 120, "response_format": form, **settings})
    choice = Completion.fold(engine.generate([5, 6, 7], sampling)).choices[0]
    return byte_tokenizer().decode(choice.ids), choice.finish_reason


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_schema_holds(engine: Engine, wrapped: bool) -> None:
    inner: dict[str, Any] = {"schema": SCHEMA}
    form = {"type": "json_schema", "json_schema": inner} if wrapped else {"type": "json_schema", **inner}
    found = set()
    for seed in range(6):
        text, reason = answer(engine, form, seed)
        data = json.loads(text)
        assert reason == "stop"
        assert set(data) == {"city", "cold"}
        found.add((data["city"], data["cold"]))
    assert len(found) > 1


def test_an_answer_is_brought_to_its_end(engine: Engine) -> None:
    """Random weights never stop by themselves: lists, strings, numbers and further properties are closed in time."""
    endless = {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"type": "object", "properties": {"deep": {"type": "string"}}}},
            "number": {"type": "number"},
            "text": {"type": "string"},
        },
        "required": ["list", "number", "text"],
    }
    for form in ({"type": "json_schema", "schema": endless}, {"type": "json_object"}):
        for seed in range(8):
            text, reason = answer(engine, form, seed, max_tokens=240)
            assert reason == "stop", text
            assert set(json.loads(text)) >= set(form.get("schema", {}).get("required", ()))


def test_greedy_obeys_too(engine: Engine) -> None:
    text, _ = answer(engine, {"type": "json_schema", "schema": SCHEMA}, temperature=0)
    assert set(json.loads(text)) == {"city", "cold"}


def test_a_regex_holds_and_min_tokens_cannot_break_it(engine: Engine) -> None:
    text, reason = answer(engine, {"type": "regex", "regex": "[ab]{3}-[0-9]{2}"}, min_tokens=50)
    assert re.fullmatch("[ab]{3}-[0-9]{2}", text)
    assert reason == "stop"


@pytest.mark.parametrize("grammar", ['start: "yes" | "no " /[0-9]{2}/', 'root ::= "yes" | "no " [0-9] [0-9]'])
def test_a_grammar_holds(engine: Engine, grammar: str) -> None:
    for seed in range(4):
        text, reason = answer(engine, {"type": "grammar", "grammar": grammar}, seed)
        assert re.fullmatch("yes|no [0-9][0-9]", text)
        assert reason == "stop"


def test_what_must_follow_is_told_ahead() -> None:
    matcher = Grammars(byte_tokenizer(), 257).open({"type": "json_schema", "schema": SCHEMA})
    assert matcher is not None
    begin = byte_tokenizer().encode('{"city":"')
    assert matcher.forced() == begin
    assert np.unpackbits(matcher.allowed(), bitorder="little").nonzero()[0].tolist() == begin[:1]
    for token in begin:
        matcher.accept(token)
    assert matcher.forced() == []
    assert np.unpackbits(matcher.allowed(), bitorder="little").sum() == 2  # P and O
    matcher.accept(byte_tokenizer().encode("O")[0])
    assert bytes(matcher.forced()) != b""


def test_a_token_out_of_place_is_an_error() -> None:
    matcher = Grammars(byte_tokenizer(), 257).open({"type": "regex", "regex": "ab"})
    assert matcher is not None
    with pytest.raises(UsageError, match="grammar failed"):
        matcher.accept(byte_tokenizer().encode("b")[0])


def test_deep_nesting_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="nested"):
        Grammars(byte_tokenizer(), 257).open({"type": "json_schema", "schema": schema})


def test_a_grammar_that_fails_midway_ends_its_own_request_only(engine: Engine) -> None:
    """Branches that all stay open overflow the parser's row; a neighbour goes on."""
    many = [{"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(j)}} for j in range(40)]
    neighbour = engine.generate([1, 2], Sampling(seed=0, max_tokens=40))
    with pytest.raises(UsageError, match="grammar failed"):
        answer(engine, {"type": "json_schema", "schema": {"anyOf": many}})
    assert len(Completion.fold(neighbour).choices[0].tokens) > 0


def test_any_json_object_begins_as_one(engine: Engine) -> None:
    assert answer(engine, {"type": "json_object"})[0].startswith("{")


def test_plain_text_is_free(engine: Engine) -> None:
    free = Completion.fold(engine.generate([5, 6, 7], Sampling(seed=0, max_tokens=120))).choices[0]
    assert answer(engine, {"type": "text"})[0] == byte_tokenizer().decode(free.ids)


@pytest.mark.parametrize(
    "form",
    [{}, {"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "schema": {"type": "nonsense"}},
     {"type": "regex", "regex": "("}, {"type": "regex"}, {"type": "grammar", "grammar": "start: missing"},
     {"type": "grammar", "grammar": "root ::= missing"}, {"type": "grammar", "grammar": "start: /[a&&b]/"},
     {"type": "regex", "regex": "a" * 300_000}, {"type": "json_schema", "schema": {"default": {1, 2}}}],
    ids=str,
)  # fmt: skip
def test_nonsense_is_refused_at_once(engine: Engine, form: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        engine.generate([1], Sampling(response_format=form))
