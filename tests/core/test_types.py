from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladderlm.errors import FormatError, LadderError, UsageError, outcome
from ladderlm.types import (
    Candidate,
    Completion,
    Conversation,
    Delta,
    Image,
    Message,
    Reasoning,
    Record,
    Run,
    Sampling,
    Text,
    Token,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
)  # fmt: skip

text = st.text(max_size=20)
parts = st.one_of(
    st.builds(Text, text), st.builds(Reasoning, text), st.builds(ToolCall, text, text, text),
    st.builds(ToolResult, text, text), st.builds(Image, text, text),
)  # fmt: skip
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.tuples(parts))
conversations = st.builds(Conversation, st.lists(messages, max_size=3).map(tuple), st.tuples(st.builds(Tool, text)))
tokens = st.builds(
    Token, st.integers(0, 99), st.floats(-9, 0), st.tuples(st.builds(Candidate, st.integers(0, 9), st.floats(-9, 0)))
)
deltas = st.builds(
    Delta, index=st.integers(0, 2), part=st.sampled_from(["text", "reasoning"]), text=text,
    tokens=st.lists(tokens, max_size=2).map(tuple), finish_reason=st.sampled_from([None, "stop"]),
)  # fmt: skip


@given(conversations)
def test_conversation_round_trips(conversation: Conversation) -> None:
    assert Conversation.from_dict(conversation.to_dict()) == conversation


@given(st.lists(deltas, max_size=8))
def test_completion_is_the_fold_of_its_deltas(stream: list[Delta]) -> None:
    completion = Completion.fold([*stream, Delta(usage=Usage(3, 4))])
    for choice in completion.choices:
        mine = [d for d in stream if d.index == choice.index]
        assert choice.text == "".join(d.text for d in mine if d.part == "text")
        assert choice.reasoning == "".join(d.text for d in mine if d.part == "reasoning")
        assert choice.tokens == tuple(t for d in mine for t in d.tokens)
    assert completion.usage == Usage(3, 4)
    assert Completion.from_dict(completion.to_dict()) == completion


def test_a_wrong_name_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(FormatError, match="did you mean 'temperature'"):
        Sampling.from_dict({"temprature": 1})


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"n": 0}, {"max_tokens": -1}, {"temperature": float("nan")},
     {"best_of": 1, "n": 2}, {"stop": ("",)}, {"presence_penalty": 3}, {"temperature": True}],
)  # fmt: skip
def test_sampling_refuses_nonsense(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)


def test_record_kinds_are_closed_and_checked() -> None:
    record = Record("1", "here", "CC0-1.0", "class", {"text": "a", "label": "b"})
    assert Record.from_dict(record.to_dict()) == record
    with pytest.raises(FormatError, match="unknown record kind"):
        Record("1", "", "", "clas", {})
    with pytest.raises(FormatError, match="needs the field 'rejected'"):
        Record("1", "", "", "preference", {"prompt": "a", "chosen": "b"})
    with pytest.raises(FormatError, match="wrong type"):
        Record("1", "", "", "text", {"text": 3})


def test_every_error_is_also_a_standard_error_with_an_outcome() -> None:
    def tree(cls: type) -> list[type]:
        return [cls, *(d for s in cls.__subclasses__() for d in tree(s))]

    for cls in tree(LadderError)[1:]:
        assert len(cls.__mro__) > 4, f"{cls} refines no standard error"
    error = UsageError("bad", where="here", cure="fix it")
    assert str(error) == "bad (here): fix it"
    assert outcome(error) == (2, 400, "invalid_request_error")
    assert outcome(KeyError()).http_status == 500


def test_run_is_a_value(tmp_path) -> None:
    assert Run.from_dict(Run(tmp_path).to_dict()) == Run(tmp_path)
