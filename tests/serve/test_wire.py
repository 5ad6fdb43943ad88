"""Requests: what they become, and which field a refusal names."""

from __future__ import annotations

from typing import Any

import pytest

from ladderlm.errors import UsageError
from ladderlm.serve import wire
from ladderlm.types import Conversation, Message

HELLO = [{"role": "user", "content": "hello"}]


def test_every_sampling_field_arrives() -> None:
    asked = wire.chat_request(
        {
            "model": "m", "messages": HELLO, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
            "typical_p": 0.8, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.1,
            "seed": 7, "n": 2, "stop": "END",
            "stop_token_ids": [2], "logit_bias": {"50": -100}, "max_tokens": 9,
            "max_completion_tokens": 8, "min_tokens": 1, "logprobs": True, "top_logprobs": 4, "stream": True,
            "response_format": {"type": "json_object"},
            "stream_options": {"include_usage": True}, "user": "someone", "store": False, "metadata": {"a": "b"},
        }
    )  # fmt: skip
    s = asked.sampling
    assert (asked.model, asked.stream, asked.include_usage, asked.drawn_by_model) == ("m", True, True, False)
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.typical) == (0.5, 0.9, 40, 0.1, 0.8)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1, -1, 1.1)
    assert (s.seed, s.n, s.stop, s.stop_ids, s.logit_bias) == (7, 2, ("END",), (2,), ((50, -100.0),))
    assert (s.max_tokens, s.min_tokens, s.logprobs, s.response_format) == (8, 1, 4, {"type": "json_object"})


def test_names_of_other_servers() -> None:
    body = {"dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_sequence_breakers": ["."],
            "mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2}  # fmt: skip
    s = wire.sampling(body)
    assert (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_breakers) == (0.8, 1.5, 3, (".",))
    assert (s.mirostat_tau, s.mirostat_eta) == (4, 0.2)
    assert wire.sampling({"mirostat_mode": 2}).mirostat_tau == wire.MIROSTAT_TAU
    assert wire.sampling({"mirostat": 0, "mirostat_tau": 4}).mirostat_tau == 0
    with pytest.raises(UsageError, match="version 2"):
        wire.sampling({"mirostat": 1})
    asked = wire.completion_request({"prompt": "a", "grammar": 'root ::= "a"'})
    assert asked.sampling.response_format == {"type": "grammar", "grammar": 'root ::= "a"'}
    regex = {"type": "regex", "regex": "a+"}
    assert wire.completion_request({"prompt": "a", "response_format": regex}).sampling.response_format == regex


def test_embedding_requests() -> None:
    asked = wire.embedding_request({"input": ["a", [1, 2]], "dimensions": 8, "encoding_format": "base64"})
    assert asked == wire.EmbeddingRequest(None, ("a", (1, 2)), 8, True)
    assert wire.embedding_request({"input": "a"}).documents == ("a",)
    for body, field in (({}, "input"), ({"input": [{}]}, "input[0]"), ({"input": "a", "dimensions": 0}, "dimensions"),
                        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
                        ({"input": ["a"] * 2049}, "input")):  # fmt: skip
        with pytest.raises(UsageError) as refused:
            wire.embedding_request(body)
        assert (refused.value.where or "").split("=")[0] == field


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
    asked = wire.chat_request({"messages": HELLO, **dict.fromkeys(names)})
    assert asked == wire.chat_request({"messages": HELLO})
    assert asked.drawn_by_model


def test_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = wire.conversation([{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}])
    assert found == Conversation((Message.of("system", "be kind"), Message.of("user", "ab")))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
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
        ({"messages": HELLO, "stop": [1]}, "stop"),
        ({"messages": HELLO, "stop": ""}, "stop"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": HELLO, "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": 1}, "logprobs"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": HELLO, "model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as refused:
        wire.chat_request(body)
    assert (refused.value.where or "").split("=")[0] == field


def test_prompts_in_all_four_shapes() -> None:
    assert wire.prompts("a") == ("a",)
    assert wire.prompts(["a", "b"]) == ("a", "b")
    assert wire.prompts([1, 2]) == ((1, 2),)
    assert wire.prompts([[1], [2, 3]]) == ((1,), (2, 3))
    for wrong in (None, [], 3, [[]], [1, "a"], [-1], [True], [["a"]], {"a": 1}):
        with pytest.raises(UsageError):
            wire.prompts(wrong)


def test_completion_defaults_and_limits() -> None:
    asked = wire.completion_request({"prompt": "x", "echo": True, "logprobs": 2, "max_tokens": 0})
    assert (asked.sampling.max_tokens, asked.sampling.logprobs, asked.sampling.prompt_logprobs) == (0, 2, 2)
    assert wire.completion_request({"prompt": "x"}).sampling.max_tokens == 16
    for wrong in (
        {"prompt": ["x"] * 600},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "stream": True, "best_of": 3},
    ):
        with pytest.raises(UsageError):
            wire.completion_request(wrong)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'"text"'])
def test_a_body_that_is_no_object(data: bytes) -> None:
    with pytest.raises(UsageError, match="body"):
        wire.parse_json(data)
