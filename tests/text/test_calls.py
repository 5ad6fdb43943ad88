"""What is said, told apart: every family's calls, reasoning, and what only looks like them; cut anywhere."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from ladderlm.text.bpe import train_bpe
from ladderlm.text.calls import HERMES, LLAMA, MISTRAL, Form, Reader, form_of, thinks
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
    for seed in range(40):
        rng = random.Random(seed)
        cuts = list(range(len(text))) if not seed else [rng.randrange(len(text) + 1) for _ in range(rng.randrange(6))]
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
    assert form_of(ChatTemplate(CHATML), known) is MISTRAL
    assert form_of(ChatTemplate(CHATML), plain) is HERMES
    assert form_of(ChatTemplate("{{ '\"parameters\": ' }}"), plain) is LLAMA
    assert thinks(ChatTemplate(CHATML), known)
    assert not thinks(ChatTemplate(CHATML), plain)
