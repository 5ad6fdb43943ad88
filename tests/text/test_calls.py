"""What is said, told apart: every family's calls, reasoning, and what only looks like them; cut anywhere."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from ladderlm.text.bpe import train_bpe
from ladderlm.text.calls import HERMES, LLAMA, MISTRAL, QWEN_CODER, Form, Reader, form_of, thinks
from ladderlm.text.tagged import converted, kind
from ladderlm.text.template import CHATML, ChatTemplate
from ladderlm.types import Completion, Delta

NAMES = ("get_weather", "get_time")
CALL = '{"name": "get_weather", "arguments": {"city": "Z}\\"ü{", "days": [1, 2]}}'
TIME = '{"name": "get_time", "arguments": {}}'
WEATHER = ("get_weather", {"city": 'Z}"ü{', "days": [1, 2]})
CLOCK: tuple[str, dict[str, object]] = ("get_time", {})


def read(text: str, cuts: list[int], form: Form, **settings: object) -> Completion:
    """`text` read in pieces."""
    reader = Reader(form=form, names=NAMES, **settings)  # type: ignore[arg-type]
    edges = sorted({0, *cuts, len(text)})
    deltas = [d for a, b in itertools.pairwise(edges) for d in reader.feed(text[a:b])]
    return Completion.fold([*deltas, *reader.finish(), Delta(finish_reason="stop")])


def told(text: str, form: Form, **settings: object) -> tuple[str, str, list[tuple[str, object]]]:
    """(text, reasoning, calls), the same however the text is cut."""
    found = set()
    length, rng = len(text), random.Random(0)
    ways = [list(range(length)), *([at] for at in range(length)), *([at, at + 1] for at in range(length))]
    ways += [[rng.randrange(length + 1) for _ in range(rng.randrange(6))] for _ in range(40)]
    for cuts in ways:
        choice = read(text, cuts, form, **settings).choices[0]
        assert len({c.id for c in choice.tool_calls}) == len(choice.tool_calls)
        calls = [(c.name, json.loads(c.arguments)) for c in choice.tool_calls]
        found.add(json.dumps([choice.text, choice.reasoning, calls]))
    assert len(found) == 1
    said, thought, calls = json.loads(found.pop())
    return said, thought, [tuple(c) for c in calls]


@pytest.mark.parametrize("sure", [False, True])
def test_hermes(sure: bool) -> None:
    one = f"<tool_call>\n{CALL}\n</tool_call>"
    two = f"{one}\n<tool_call>\n{TIME}\n</tool_call>"
    assert told(one, HERMES, sure=sure) == ("", "", [WEATHER])
    assert told(two, HERMES, sure=sure) == ("", "", [WEATHER, CLOCK])
    assert told(two, HERMES, sure=sure, many=False) == ("", "", [WEATHER])
    assert told(f"Let me look.\n{two}\n", HERMES, sure=sure) == ("Let me look.", "", [WEATHER, CLOCK])
    assert told(f"<think>\nhm\n</think>\n\n{one}", HERMES, sure=sure, reasons=True) == ("", "hm", [WEATHER])


def test_mistral() -> None:
    for text in (f"[TOOL_CALLS] [{CALL}, {TIME}]", f"[TOOL_CALLS][{CALL},{TIME}]"):
        assert told(text, MISTRAL) == ("", "", [WEATHER, CLOCK])
        assert told(text, MISTRAL, sure=True) == ("", "", [WEATHER, CLOCK])
    newer = '[TOOL_CALLS]get_weather[ARGS]{"city": "Z}\\"ü{", "days": [1, 2]}'
    assert told(newer, MISTRAL) == ("", "", [WEATHER])
    assert told(newer + "[TOOL_CALLS]get_time[ARGS]{}", MISTRAL) == ("", "", [WEATHER, CLOCK])


def test_llama() -> None:
    bare = CALL.replace("arguments", "parameters")
    assert told(bare, LLAMA) == ("", "", [WEATHER])
    assert told(f"<|python_tag|>{bare}", LLAMA) == ("", "", [WEATHER])
    assert told(f"{bare}; {TIME}", LLAMA) == ("", "", [WEATHER, CLOCK])
    assert told(f"{bare}; {TIME}", LLAMA, many=False) == ("", "", [WEATHER])
    assert told("An answer {in braces}.", LLAMA) == ("An answer {in braces}.", "", [])


# --- Between tags -------------------------------------------------------------------------------------------------

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "note": {"type": "string"},
            "where": {"type": "object"},
        },
    },
}  # fmt: skip


def tags(name: str, **values: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


@pytest.mark.parametrize("sure", [False, True])
def test_qwen_coder(sure: bool) -> None:
    settings: dict[str, object] = {"sure": sure, "schemas": SCHEMAS}
    one = tags("get_weather", city="07", days="3", note=' two\n\n"lines" <b>\\', where='{"x": [1, null]}')
    found = ("get_weather", {"city": "07", "days": 3, "note": ' two\n\n"lines" <b>\\', "where": {"x": [1, None]}})
    assert told(one, QWEN_CODER, **settings) == ("", "", [found])
    assert told(tags("get_time"), QWEN_CODER, **settings) == ("", "", [CLOCK])
    two = f"{one}\n{tags('get_time', zone='null', other='5')}"
    assert told(f"Let me look.\n{two}\n", QWEN_CODER, **settings) == (
        "Let me look.",
        "",
        [found, ("get_time", {"zone": None, "other": "5"})],
    )
    assert told(two, QWEN_CODER, **settings, many=False) == ("", "", [found])
    thought = told(f"<think>\nhm\n</think>\n\n{one}", QWEN_CODER, **settings, reasons=True)
    assert thought == ("", "hm", [found])
    for text in ("\n two \n\n", "nullable, and more than an end is long", "null", "null\n</parameter> of a long text"):
        if sure or "</" not in text:  # freely written, a value ends at the first tag
            long = told(tags("get_weather", city=text, days="3"), QWEN_CODER, **settings)
            city = None if text == "null" else text
            assert long == ("", "", [("get_weather", {"city": city, "days": 3})])
    assert told(tags("get_weather", city=""), QWEN_CODER, **settings) == ("", "", [("get_weather", {"city": ""})])


def test_qwen_coder_as_models_forget_it() -> None:
    bare = tags("get_weather", city="Oslo", days="3").removeprefix("<tool_call>\n")
    found = ("get_weather", {"city": "Oslo", "days": 3})
    for sure in (False, True):  # what no grammar can have made sure of
        assert told(f"Now: {bare}", QWEN_CODER, schemas=SCHEMAS, sure=sure) == ("Now:", "", [found])
    unclosed = "<tool_call><function=get_weather><parameter=city>Oslo\n<parameter=days>\n3\n</function></tool_call>"
    assert told(unclosed, QWEN_CODER, schemas=SCHEMAS) == ("", "", [found])
    inner = bare.removesuffix("\n</tool_call>")
    both = f"<tool_call>\n{inner}\n{inner}\n</tool_call>"
    assert told(both, QWEN_CODER, schemas=SCHEMAS) == ("", "", [found, found])
    assert told(f"<tool_call>\n{CALL}\n</tool_call>", QWEN_CODER) == ("", "", [WEATHER])


@pytest.mark.parametrize(
    "text",
    [
        "a < b <tool", "<tool_call>", "<function=", "use <function=get_time> so", "<tool_call>\n<function=get_time>",
        "<tool_call>\n<function=other>\n</function>\n</tool_call> and more", "<tool_call>\n<fun", "<function=\n>",
        "<tool_call>no tags</tool_call>", "<function=other></function> <function=x>",
    ],
)  # fmt: skip
def test_tags_that_are_no_call_stay_text(text: str) -> None:
    assert told(text, QWEN_CODER, schemas=SCHEMAS) == (text, "", [])
    after = told(f"{text}\n{tags('get_time')}", QWEN_CODER, schemas=SCHEMAS)
    if "</" in text or text.startswith("a"):
        assert after == (text, "", [CLOCK])


def test_sure_text_is_told_as_it_comes_and_other_values_when_they_are_whole() -> None:
    reader = Reader(form=QWEN_CODER, names=NAMES, schemas=SCHEMAS, sure=True)
    whole = tags("get_weather", city="Oslo", days="312", more="x")
    deltas = [d for at in range(0, len(whole), 5) for d in reader.feed(whole[at : at + 5])]
    pieces = [d.call.arguments for d in deltas if d.call is not None]
    assert json.loads("".join(pieces)) == {"city": "Oslo", "days": 312, "more": "x"}
    assert ', "days": 312' in pieces
    long = 'def f():\n\treturn "é"\n' * 20
    reader = Reader(form=QWEN_CODER, names=NAMES, schemas=SCHEMAS, sure=True)
    pieces = [d.call.arguments for c in tags("get_weather", note=long) for d in reader.feed(c) if d.call is not None]
    assert json.loads("".join(pieces)) == {"note": long}
    assert len(pieces) > 200
    cut = Reader(form=QWEN_CODER, names=NAMES, schemas=SCHEMAS, sure=True)
    whole = tags("get_weather", city="Oslo", days="3")
    deltas = [*cut.feed(whole[: whole.index("3")]), *cut.finish()]
    assert [d.call.arguments for d in deltas if d.call] == ["", '{"city": "Oslo"']


STRING, NUMBER = {"type": "string"}, {"type": "number"}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (STRING, "42", "42"), (STRING, "Null", None), (STRING, "\n two \n", "\n two \n"),
        ({"type": "integer"}, "-42", -42), ({"type": "integer"}, "4.5", "4.5"), ({"type": "int64"}, "7", 7),
        (NUMBER, "2", 2), (NUMBER, "2.50", 2.5), (NUMBER, "3.0", 3), (NUMBER, "nan", "nan"), (NUMBER, "x", "x"),
        (NUMBER, "1e999", "1e999"), ({"type": "boolean"}, "True", True), ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "yes", False), ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "array"}, "[True, 'a']", [True, "a"]), ({"type": "object"}, "{oops", "{oops"),
        ({"type": "object"}, "NaN", "NaN"), ({"type": "array"}, "(1, 2)", [1, 2]), ({"type": "array"}, "{1}", "{1}"),
        ({"type": ["string", "null"]}, "42", "42"), ({"type": ["integer", "null"]}, "42", 42),
        ({"anyOf": [STRING, {"type": "null"}]}, "42", "42"), ({"anyOf": [STRING, NUMBER]}, "42", 42),
        ({"anyOf": [STRING, NUMBER]}, "a b", "a b"), ({"enum": ["1", "2"]}, "1", "1"), ({"enum": [1, 2]}, "1", 1),
        ({"$ref": "#/$defs/size"}, "1", "1"), ({"$ref": "#/$defs/loop"}, "1", "1"), ({}, "1", "1"), (True, "1", "1"),
        ({"type": "object"}, "[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_values_by_their_types(schema: object, text: str, value: object) -> None:
    defs = {"size": {"enum": ["1", "2"]}, "loop": {"$ref": "#/$defs/loop"}}
    parameters = {"type": "object", "properties": {"key": schema}, "$defs": defs}
    found = converted(text, "key", parameters)
    assert json.loads(json.dumps(found)) == value
    assert type(found) is type(value) or isinstance(found, tuple)
    assert converted(text, "other", parameters) in (text, None)


def test_a_type_that_contains_itself_is_something() -> None:
    nested = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array"}]}}}
    assert kind({"$ref": "#/$defs/a"}, nested) in ("any", "json")


@pytest.mark.parametrize(
    "text",
    [
        "plain", "a < b <tool", " leading", "trailing \n", "\n", "<tool_call>", '<tool_call>\n{"name": "get_weather"',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call> and more', "<tool_call>no json</tool_call>",
        '<tool_call>{"name": "get_time", "arguments": {"a": NaN}}</tool_call>', "x <tool_call> \n[1] y",
        '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>', "<tool_call>\n{]}\n</tool_call>",
        '<tool_call>{"name": ["get_time"], "arguments": {}}</tool_call>',
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text(text: str) -> None:
    assert told(text, HERMES) == (text, "", [])
    assert told(text.replace("<tool_call>", "[TOOL_CALLS]"), MISTRAL)[0] == text.replace("<tool_call>", "[TOOL_CALLS]")
    bare = text.removeprefix("<tool_call>")
    assert told(bare, LLAMA) == (bare, "", [])


def test_a_call_may_follow_one_that_is_none() -> None:
    text = f"<tool_call>oops</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"
    assert told(text, HERMES) == ("<tool_call>oops</tool_call>", "", [WEATHER])


def test_arguments_as_a_string_and_none() -> None:
    text = '<tool_call>{"name": "get_time", "arguments": "{\\"zone\\": \\"CET\\"}"}</tool_call>'
    assert told(text, HERMES) == ("", "", [("get_time", {"zone": "CET"})])
    assert told('<tool_call>{"name": "get_time"}</tool_call>', HERMES) == ("", "", [CLOCK])


def test_sure_calls_are_told_as_they_come() -> None:
    reader = Reader(form=HERMES, names=NAMES, sure=True)
    deltas = [d for c in f"<tool_call>\n{CALL}\n</tool_call>" for d in reader.feed(c)]
    assert deltas[0].call is not None
    assert (deltas[0].call.name, deltas[0].call.arguments) == ("get_weather", "")
    assert (
        "".join(d.call.arguments for d in deltas if d.call) == CALL[len('{"name": "get_weather", "arguments": ') : -1]
    )
    assert len(deltas) > 20
    cut = Reader(form=HERMES, names=NAMES, sure=True)
    deltas = [*cut.feed('<tool_call>\n{"name": "get_weather", "arguments": {"ci'), *cut.finish()]
    assert [d.call.arguments for d in deltas if d.call] == ["", '{"ci']


def test_reasoning() -> None:
    assert told("<think>\none\n\ntwo\n</think>\n\nanswer", HERMES, reasons=True) == ("answer", "one\n\ntwo", [])
    assert told("one\n</think>\n\nanswer\n", HERMES, reasons=True, inside=True) == ("answer\n", "one", [])
    assert told("never closed <", HERMES, reasons=True, inside=True) == ("", "never closed <", [])
    assert told("a <think>b</think>", HERMES, reasons=True) == ("a <think>b</think>", "", [])
    assert told("<think>b</think>", HERMES) == ("<think>b</think>", "", [])
    assert told("<thin", HERMES, reasons=True) == ("<thin", "", [])


def test_which_form_is_told_by_the_template() -> None:
    plain = train_bpe(["hello"], 300)
    known = train_bpe(["hello"], 300, ("<|im_end|>", "[TOOL_CALLS]", "<think>"))
    assert form_of(ChatTemplate("{{ '<tool_call>' }}"), known) is HERMES
    assert form_of(ChatTemplate("{{ '<tool_call><function=f><parameter=' }}"), known) is QWEN_CODER
    assert form_of(ChatTemplate(CHATML), known) is MISTRAL
    assert form_of(ChatTemplate(CHATML), plain) is HERMES
    assert form_of(ChatTemplate("{{ '\"parameters\": ' }}"), plain) is LLAMA
    assert thinks(ChatTemplate(CHATML), known)
    assert not thinks(ChatTemplate(CHATML), plain)
