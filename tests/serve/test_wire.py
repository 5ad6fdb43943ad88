"""Requests: what they become, and which field a refusal names."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")
from pydantic import ValidationError

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import Wire, complaint
from ladderlm.serve.wire.chat import ChatBody
from ladderlm.serve.wire.raw import CompletionBody, EmbeddingBody
from ladderlm.serve.wire.sampling import MIROSTAT_TAU
from ladderlm.types import Conversation, Message, Sampling

HELLO = [{"role": "user", "content": "hello"}]


def chat(**body: Any) -> ChatBody:
    return ChatBody.model_validate({"messages": HELLO, **body})


def completion(**body: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "a", **body})


def refused(kind: type[Wire], body: dict[str, Any], *read: str) -> str:
    """The field that is complained about, in the schema or when what it means is `read`; "" if none is."""
    try:
        asked = kind.model_validate(body)
        for name in read:
            found = getattr(asked, name)
            _ = found() if callable(found) else found
    except ValidationError as error:
        return complaint(error.errors(), body).where or ""
    except UsageError as error:
        return (error.where or "").split("=")[0]
    return ""


def test_every_sampling_field_arrives() -> None:
    asked = chat(
        model="m", temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, typical_p=0.8, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.1, seed=7, n=2, stop="END", stop_token_ids=[2],
        logit_bias={"50": -100}, max_tokens=9, max_completion_tokens=8.0, min_tokens=1, logprobs=True, top_logprobs=4,
        stream=True, response_format={"type": "json_object"}, stream_options={"include_usage": True}, user="someone",
        store=False, metadata={"a": "b"},
    )  # fmt: skip
    s = asked.sampling
    assert (asked.model, asked.stream, asked.include_usage, asked.drawn_by_model) == ("m", True, True, False)
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.typical) == (0.5, 0.9, 40, 0.1, 0.8)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1, -1, 1.1)
    assert (s.seed, s.n, s.stop, s.stop_ids, s.logit_bias) == (7, 2, ("END",), (2,), ((50, -100.0),))
    assert (s.max_tokens, s.min_tokens, s.logprobs, s.response_format) == (8, 1, 4, {"type": "json_object"})


def test_names_of_other_servers() -> None:
    s = chat(
        dry_multiplier=0.8, dry_base=1.5, dry_allowed_length=3, dry_sequence_breakers=["."], mirostat=2,
        mirostat_tau=4, mirostat_eta=0.2, top_k=-1,
    ).sampling  # fmt: skip
    assert (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_breakers) == (0.8, 1.5, 3, (".",))
    assert (s.mirostat_tau, s.mirostat_eta, s.top_k) == (4, 0.2, 0)
    assert chat(mirostat_mode=2).sampling.mirostat_tau == MIROSTAT_TAU
    assert chat(mirostat=0, mirostat_tau=4).sampling.mirostat_tau == 0
    grammar = {"type": "grammar", "grammar": 'root ::= "a"'}
    assert completion(grammar=grammar["grammar"]).sampling.response_format == grammar
    for form in ({"type": "regex", "regex": "a+"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}):
        assert completion(response_format=form).sampling.response_format == form


def test_embedding_requests() -> None:
    asked = EmbeddingBody.model_validate({"input": ["a", [1, 2]], "dimensions": 8, "encoding_format": "base64"})
    assert (asked.documents, asked.dimensions) == (("a", (1, 2)), 8)
    assert EmbeddingBody.model_validate({"input": "a"}).documents == ("a",)
    for body, field in (({}, "input"), ({"input": [{}]}, "input[0]"), ({"input": "a", "dimensions": 0}, "dimensions"),
                        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
                        ({"input": ["a"] * 2049}, "input")):  # fmt: skip
        assert refused(EmbeddingBody, body) == field


def test_null_means_absent() -> None:
    names = (
        "model",
        "temperature",
        "stop",
        "logit_bias",
        "max_tokens",
        "response_format",
        "stream_options",
        "logprobs",
    )
    asked = chat(**dict.fromkeys(names))
    assert asked == chat()
    assert asked.drawn_by_model


def test_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    assert chat(messages=turns).conversation() == Conversation(
        (Message.of("system", "be kind"), Message.of("user", "ab"))
    )


TOOL = {"type": "function", "function": {"name": "f"}}
NO_TOOL = {"type": "function", "function": {"name": "g"}}
CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}],
}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages",
        ),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": True}, "temperature"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "temperature": 1e400}, "temperature"),
        ({"messages": HELLO, "top_p": 0}, "top_p"),
        ({"messages": HELLO, "n": 1.5}, "n"),
        ({"messages": HELLO, "n": 0}, "n"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "stop": [1]}, "stop[0]"),
        ({"messages": HELLO, "stop": ""}, "stop"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"messages": HELLO, "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": 1}, "logprobs"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": HELLO, "tools": [TOOL, TOOL]}, "tools"),
        ({"messages": HELLO, "tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"messages": HELLO, "tools": [TOOL], "tool_choice": NO_TOOL}, "tool_choice"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HELLO, "functions": [{"name": "f"}]}, "functions"),
        ({"messages": [*HELLO, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [*HELLO, CALLED]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": HELLO, "model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    assert refused(ChatBody, body, "sampling", "conversation") == field


def test_prompts_in_all_four_shapes() -> None:
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[1, 2]).prompts == ((1, 2),)
    assert completion(prompt=[[1], [2, 3]]).prompts == ((1,), (2, 3))
    for wrong in (None, [], 3, [[]], [1, "a"], [-1], [True], [["a"]], {"a": 1}):
        assert refused(CompletionBody, {"prompt": wrong}).startswith("prompt")


def test_completion_defaults_and_limits() -> None:
    asked = completion(echo=True, logprobs=2, max_tokens=0).sampling
    assert asked == Sampling(max_tokens=0, logprobs=2, prompt_logprobs=2)
    assert completion().sampling.max_tokens == 16
    for wrong, field in (({"prompt": ["x"] * 600}, "prompt"), ({"prompt": "x", "suffix": "y", "echo": True}, "echo"),
                         ({"prompt": "x", "stream": True, "best_of": 3}, "best_of")):  # fmt: skip
        assert refused(CompletionBody, wrong, "sampling") == field
