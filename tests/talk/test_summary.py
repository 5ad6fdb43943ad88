"""A conversation told in short: everything is read, in pieces where the model's context is small."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ladderlm.errors import ContextOverflow, DeadlineExceeded
from ladderlm.talk.summary import ASKED, LIMIT, summarise
from ladderlm.types import (
    Cancel,
    Completion,
    Conversation,
    Delta,
    Message,
    Reasoning,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)


class Reader:
    """Has room for so many characters, and says how many it read. `stops`: it can say one word more at that length."""

    defaults = Sampling()

    def __init__(self, room: int, stops: int | None = None) -> None:
        self.room, self.stops, self.asked = room, stops, list[str]()

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        (message,) = conversation.messages
        if len(message.text) > self.room:
            raise ContextOverflow("too long")
        cut = self.stops is not None and len(message.text) > self.stops
        if not cut:
            self.asked.append(message.text)
        yield Delta(part="reasoning", text="hm")
        yield Delta(text=f" sum {len(self.asked)} ")
        yield Delta(finish_reason="length" if cut else "stop", usage=Usage(10, 1 if cut else 3, cost=0.5))

    def close(self) -> None: ...


TALK = Conversation(
    (
        Message.of("system", "Be kind."),
        Message.of("user", "alpha " * 60),
        Message("assistant", (Reasoning("secret"), Text("bravo"), ToolCall("c", "look", '{"q": 1}'))),
        Message("tool", (ToolResult("c", "charlie"),)),
        Message.of("user", "delta " * 60),
    )
)


def test_all_of_it_is_read_at_once_where_there_is_room() -> None:
    reader = Reader(10_000)
    made = Completion.fold(summarise(reader, TALK))
    assert (made.text, made.usage) == ("sum 1", Usage(10, 3, 0, 0.5))
    (asked,) = reader.asked
    assert asked.startswith(ASKED)
    for word in ("Setting: Be kind.", "User: alpha", 'bravo [calls look with {"q": 1}]', "Tool: charlie", "delta"):
        assert word in asked
    assert "secret" not in asked


@pytest.mark.parametrize("stops", [None, len(ASKED) + 330])
def test_in_pieces_where_there_is_not_each_with_the_summary_so_far(stops: int | None) -> None:
    reader = Reader(len(ASKED) + (300 if stops is None else 400), stops)
    made = Completion.fold(summarise(reader, TALK))
    assert len(reader.asked) > 2
    assert made.text == f"sum {len(reader.asked)}"
    assert made.usage.prompt_tokens >= 10 * len(reader.asked)
    whole = "".join(reader.asked)
    assert (whole.count("alpha"), whole.count("delta")) == (60, 60)
    for text in ("Be kind.", "bravo", "charlie"):
        assert whole.count(text) == 1
    for number, asked in enumerate(reader.asked[1:], 1):
        assert f"What was said before it: sum {number}" in asked


def test_a_context_that_is_too_small_and_a_time_that_is_over() -> None:
    with pytest.raises(ContextOverflow, match="too small"):
        list(summarise(Reader(len(ASKED)), TALK))
    with pytest.raises(DeadlineExceeded):
        list(summarise(Reader(10_000), TALK, deadline=time.monotonic() - 1))


def test_a_long_summary_is_no_lack_of_room() -> None:
    class Long(Reader):
        def stream(self, conversation: Conversation, sampling: Sampling, **more: object) -> Iterator[Delta]:  # type: ignore[override]
            yield Delta(text="word " * sampling.max_tokens if sampling.max_tokens else "")
            yield Delta(finish_reason="length", usage=Usage(10, LIMIT))

    assert Completion.fold(summarise(Long(0), TALK)).text.split() == ["word"] * LIMIT
