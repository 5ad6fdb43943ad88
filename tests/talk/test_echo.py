"""EchoChat: deterministic, and honest about the settings that Chats honour."""

from __future__ import annotations

import time

import pytest

from ladderlm.errors import DeadlineExceeded, UsageError
from ladderlm.talk import Talker, open_chat
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Cancel, Chat, Completion, Conversation, Sampling

TALK = Conversation.of("one two  three\nfour ", "system").add("assistant", "x")


def test_it_says_the_last_user_message_word_by_word() -> None:
    chat = open_chat("echo")
    assert isinstance(chat, Chat)
    assert isinstance(chat, Talker)
    deltas = list(chat.stream(TALK, Sampling()))
    assert [d.text for d in deltas if d.text][:3] == ["one", " two", "  three"]
    done = Completion.fold(deltas)
    assert done.text == "one two  three\nfour "
    assert "".join(t.text for t in done.choices[0].tokens) == done.text
    assert done.choices[0].finish_reason == "stop"
    assert deltas[-1].usage == done.usage
    assert list(chat.stream(TALK, Sampling())) == deltas


def test_stop_limit_and_n() -> None:
    chat = EchoChat()
    assert Completion.fold(chat.stream(TALK, Sampling(stop=("thr",)))).text == "one two  "
    cut = Completion.fold(chat.complete("one two three", Sampling(max_tokens=2, n=2)))
    assert [(c.text, c.finish_reason) for c in cut.choices] == [("one two", "length")] * 2
    assert cut.usage.completion_tokens == 4
    assert Completion.fold(chat.complete("", Sampling())).choices[0].finish_reason == "stop"


def test_cancel_and_deadline() -> None:
    chat, cancel = EchoChat(delay=0.01), Cancel()
    stream = chat.stream(TALK, Sampling(), cancel=cancel)
    next(stream)
    cancel.set()
    assert [d.finish_reason for d in stream] == ["cancelled"]
    with pytest.raises(DeadlineExceeded):
        list(chat.stream(TALK, Sampling(), deadline=time.monotonic()))


def test_it_has_no_probabilities() -> None:
    for ask in (lambda c: c.next("a"), lambda c: c.rank("a", ["b"]), lambda c: c.word_sums("a", ["b"])):
        with pytest.raises(UsageError, match="no probabilities"):
            ask(EchoChat())
