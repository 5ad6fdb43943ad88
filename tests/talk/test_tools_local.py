"""Tool calls of local models: whatever weights say, what is forced parses and fits, and what is free is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from engine_models import KindWeights, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.errors import UsageError
from ladderlm.talk.local import LocalChat
from ladderlm.talk.telling import Telling
from ladderlm.text.bpe import train_bpe
from ladderlm.text.calls import QWEN_CODER
from ladderlm.text.render import render
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import SpecialTokens
from ladderlm.text.tools import fitted, grammar
from ladderlm.types import Completion, Conversation, Message, Sampling, Text, Tool, ToolCall, ToolResult

JINJA = Path(__file__).parents[1] / "text" / "jinja"
CONTROL = (
    "<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|python_tag|>", "[INST]", "[/INST]", "[TOOL_CALLS]",
)  # fmt: skip
MARKUP = ("<tool_call>", "</tool_call>", "<think>", "</think>")
ENDS = {"mistral": "</s>", "llama-3.1": "<|eot_id|>"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1,
        "maximum": 9}}, "required": ["city", "days"]}  # fmt: skip
WEATHER, TIME = Tool("get_weather", "The weather.", CITY), Tool("get_time", "The time.")
BOTH = Conversation((Message.of("user", "Weather?"),), (WEATHER, TIME))


def drawn(engine: Engine, **settings: Any) -> Sampling:
    """For short answers: no thinking, one call."""
    whole: Any = engine._grammars
    think = whole._tokenizer.control.get("<think>")
    settings = {"max_tokens": 400, "parallel_tool_calls": False, **settings}
    bias = (*settings.pop("logit_bias", ()), *(() if think is None else ((think, -100.0),)))
    return Sampling(**settings, logit_bias=bias)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[bool, Engine]]:
    """By whether the marks of calls and thoughts are tokens of their own."""
    made = {}
    for marked in (True, False):
        text = 'hello world {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}} get_time ' * 30
        tokenizer = train_bpe([text], 400, CONTROL + (MARKUP if marked else ()))
        arch = tiny(vocab_size=tokenizer.vocab_size, context_length=2048)
        made[marked] = Engine(on_cpu(arch, KindWeights(arch), threads=1), tokenizer)
    yield made
    for engine in made.values():
        engine.close()


def chat_of(engine: Engine, name: str) -> LocalChat:
    """A chat with the template `name` on a random model."""
    whole: Any = engine._grammars
    tokenizer = whole._tokenizer
    end = tokenizer.control[ENDS.get(name, "<|im_end|>")]
    tokenizer = tokenizer.with_special(SpecialTokens(bos=tokenizer.control["<s>"], eos=end))
    template = ChatTemplate((JINJA / f"{name}.jinja").read_text(encoding="utf-8"), "<s>", "</s>")
    files: Any = SimpleNamespace(tokenizer=tokenizer, template=template, name=name, generation={})
    return LocalChat(files, engine, release=lambda: None)


def calls(choice: Any) -> list[tuple[str, Any]]:
    return [(c.name, json.loads(c.arguments)) for c in choice.tool_calls]


def fits(name: str, arguments: dict[str, Any]) -> bool:
    if name == "get_time":
        return arguments == {}
    return set(arguments) == {"city", "days"} and arguments["city"] in ("Oslo", "Rome") and 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3-coder", "mistral", "llama-3.1", "chatml", "smollm3"])
def test_a_required_call_parses_and_fits(name: str, marked: bool, engines: dict[bool, Engine]) -> None:
    chat, found = chat_of(engines[marked], name), set()
    for seed in range(4):
        sampling = Sampling(tool_choice="required", max_tokens=150, parallel_tool_calls=False, seed=seed)
        choice = Completion.fold(chat.stream(BOTH, sampling)).choices[0]
        if choice.finish_reason == "length":  # a random model may think for long before the call
            assert choice.reasoning
            continue
        assert (choice.finish_reason, choice.text) == ("tool_calls", ""), name
        ((tool, arguments),) = calls(choice)
        assert fits(tool, arguments)
        found.add(tool)
    assert found or name in ("qwen3", "smollm3")


def test_a_named_tool_is_the_only_one_on_offer(engines: dict[bool, Engine]) -> None:
    only = Conversation(BOTH.messages, (WEATHER,))
    choice = Completion.fold(
        chat_of(engines[True], "qwen2.5").stream(only, drawn(engines[True], tool_choice="required"))
    ).choices[0]
    assert [c.name for c in choice.tool_calls] == ["get_weather"]


def test_several_calls_and_their_logprobs(engines: dict[bool, Engine]) -> None:
    chat, most = chat_of(engines[True], "qwen2.5"), 0
    for seed in range(6):
        sampling = Sampling(tool_choice="required", max_tokens=300, logprobs=2, seed=seed, n=2)
        deltas = list(chat.stream(BOTH, sampling))
        for choice in Completion.fold(deltas).choices:
            if choice.finish_reason == "tool_calls":
                assert all(fits(*call) for call in calls(choice))
                most = max(most, len(choice.tool_calls))
            assert all(t.logprob is not None and len(t.top) == 2 for t in choice.tokens)
            spelled = b"".join(bytes(t.data) for t in choice.tokens).decode()
            assert all(c.arguments in spelled for c in choice.tool_calls)
        pieces = [d for d in deltas if d.call]
        assert len(pieces) > 2
    assert most > 1


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3-coder", "mistral"])
def test_without_being_required_text_may_come_and_calls_are_sound(
    name: str, marked: bool, engines: dict[bool, Engine]
) -> None:
    """A bias towards the mark makes a random model call."""
    chat = chat_of(engines[marked], name)
    mark = chat.tokenizer.control.get("[TOOL_CALLS]" if name == "mistral" else "<tool_call>")
    seen = 0
    for seed in range(5):
        bias = () if mark is None else ((mark, 4.0),)
        choice = Completion.fold(
            chat.stream(BOTH, drawn(engines[marked], max_tokens=200, seed=seed, logit_bias=bias))
        ).choices[0]
        if choice.finish_reason == "tool_calls":
            assert all(fits(*call) for call in calls(choice))
            seen += 1
    assert seen or mark is None


def test_an_answer_in_json_or_a_call(engines: dict[bool, Engine]) -> None:
    chat = chat_of(engines[True], "qwen2.5")
    form = {"type": "json_schema", "json_schema": {"schema": {"const": "no"}}}
    kinds = set()
    for seed in range(12):
        choice = Completion.fold(chat.stream(BOTH, drawn(engines[True], seed=seed, response_format=form))).choices[0]
        kinds.add(choice.finish_reason)
        assert choice.text == '"no"' or all(fits(*c) for c in calls(choice))
    assert kinds == {"stop", "tool_calls"}
    with pytest.raises(UsageError, match="regex"):
        list(chat.stream(BOTH, Sampling(response_format={"type": "regex", "regex": "a"})))


def test_schemas_beyond_grammars(engines: dict[bool, Engine]) -> None:
    chat = chat_of(engines[True], "qwen2.5")
    odd = {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}, "required": ["a"]}
    loose = Conversation(BOTH.messages, (Tool("odd", "", odd),))
    choice = Completion.fold(chat.stream(loose, drawn(engines[True], tool_choice="required"))).choices[0]
    assert choice.finish_reason == "length" or isinstance(calls(choice)[0][1], dict)
    strict = Conversation(BOTH.messages, (Tool("odd", "", odd, strict=True),))
    with pytest.raises(UsageError, match="strict"):
        list(chat.stream(strict, Sampling(tool_choice="required")))
    with pytest.raises(UsageError, match="no tools"):
        list(chat.stream(Conversation.of("x"), Sampling(tool_choice="required")))


def test_references_within_a_schema_hold(engines: dict[bool, Engine]) -> None:
    schema = {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"],
              "$defs": {"P": {"enum": ["a", "b"]}}}  # fmt: skip
    talk = Conversation(BOTH.messages, (Tool("f", "", schema), WEATHER))
    for seed in range(3):
        sampling = drawn(engines[True], tool_choice="required", seed=seed)
        choice = Completion.fold(chat_of(engines[True], "qwen2.5").stream(talk, sampling)).choices[0]
        name, arguments = calls(choice)[0]
        assert arguments["p"] in ("a", "b") if name == "f" else fits(name, arguments)


def masked(engine: Engine, lark: str, text: str) -> bool:
    """Whether the grammar admits `text`, and lets it end there."""
    whole: Any = engine._grammars
    matcher = whole.open({"type": "lark", "grammar": lark})._matcher
    ids = whole._tokenizer.encode(text, special=True)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def test_between_tags_types_and_order_are_forced(engines: dict[bool, Engine]) -> None:
    schema = {
        "type": "object",
        "properties": {
            "unit": {"enum": ["C", "F"]}, "note": {"type": "string"}, "size": {"$ref": "#/$defs/size"},
            "who": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "on": {"type": "boolean"},
            "list": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["unit", "size"],
        "$defs": {"size": {"type": "integer", "minimum": 3}},
    }  # fmt: skip

    def call(*values: str, name: str = "f") -> str:
        pairs = (value.partition("=")[::2] for value in values)
        said = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in pairs)
        return f"<tool_call>\n<function={name}>\n{said}</function>\n</tool_call>"

    tools = (Tool("f", "", schema), Tool("g", "", {"type": "object", "additionalProperties": True}), TIME)
    for engine in engines.values():
        whole: Any = engine._grammars
        lark = grammar(QWEN_CODER, tools, whole._tokenizer, required=True, many=False)
        assert lark is not None
        for good in (
            call("unit=C", "size=3"), call("unit=F", 'note= a\n</b> "c"', "size=12", "who=null", "on=true"),
            call("unit=C", "note=", "size=3", "list=[1, 2]"), call("any=thing\nat all", "b=2", name="g"),
            call(name="g"), call(name="get_time"),
        ):  # fmt: skip
            assert masked(engine, lark, good), good
        for bad in (
            call("unit=K", "size=3"), call("unit=C"), call("size=3", "unit=C"), call("unit=C", "size=2"),
            call("unit=C", "size=3", "on=yes"), call("unit=C", "size=3", "x=1"), call("x=1", name="get_time"),
            call(name="h"), call("unit=C", "size=3") + "\n",
        ):  # fmt: skip
            assert not masked(engine, lark, bad), bad


def test_a_template_without_tools_gets_them_as_text(engines: dict[bool, Engine]) -> None:
    call, result = ToolCall("c1", "get_time", "{}"), ToolResult("c1", "noon")
    turns = (Message.of("system", "Be kind."), Message.of("user", "When?"), Message("assistant", (Text("Hm."), call)),
             Message("tool", (result,)))  # fmt: skip
    chat = chat_of(engines[False], "chatml")
    assert chat.files.template is not None
    shown = fitted(Conversation(turns, BOTH.tools), chat.files.template)
    text = render(shown, chat.tokenizer, chat.files.template).text
    assert "Be kind." in text.partition("<|im_end|>")[0]
    assert '"name": "get_weather"' in text.partition("<|im_end|>")[0]
    assert 'Hm.\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>' in text
    assert "<tool_response>\nnoon\n</tool_response>" in text
    assert "<|im_start|>tool" not in text


def test_templates_that_know_tools_are_left_alone(engines: dict[bool, Engine]) -> None:
    chat = chat_of(engines[True], "qwen2.5")
    assert chat.files.template is not None
    assert fitted(BOTH, chat.files.template) == BOTH


def test_a_bare_form_is_forced_only_where_a_call_is_required(engines: dict[bool, Engine]) -> None:
    chat = chat_of(engines[True], "llama-3.1")
    template: Any = chat.files.template
    free = Telling.of(template, chat.tokenizer, BOTH, "", Sampling())
    assert free.form is None
    assert Telling.of(template, chat.tokenizer, BOTH, "", Sampling(tool_choice="required")).form is not None
    assert grammar(free.calls, BOTH.tools, chat.tokenizer) is None


def test_reasoning_that_the_prompt_opened(engines: dict[bool, Engine]) -> None:
    chat = chat_of(engines[True], "qwen3")
    template: Any = chat.files.template
    telling = Telling.of(template, chat.tokenizer, Conversation.of("x"), "...<think>\n", Sampling())
    assert (telling.inside, telling.reasons) == (True, True)
    spoken = Telling.of(
        template, chat.tokenizer, Conversation.of("x"), "<think>\n", Sampling(response_format={"type": "json_object"})
    )
    assert not spoken.inside
