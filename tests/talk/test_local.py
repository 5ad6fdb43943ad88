"""LocalChat on the default model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from ladderlm.errors import ContextOverflow, UsageError
from ladderlm.talk import Talker, open_chat
from ladderlm.talk.local import LocalChat
from ladderlm.types import Cancel, Chat, Completion, Conversation, Sampling

GREEDY = Sampling(temperature=0, max_tokens=12)
HELLO = Conversation.of("Say hello.")


@pytest.fixture(scope="module")
def chat(fetched: object) -> Iterator[LocalChat]:
    opened = open_chat(str(fetched))
    assert isinstance(opened, LocalChat)
    yield opened
    opened.close()


def test_it_is_a_chat_with_defaults(chat: LocalChat) -> None:
    assert isinstance(chat, Chat)
    assert isinstance(chat, Talker)
    assert chat.defaults.temperature > 0


def test_a_stream_spells_its_tokens(chat: LocalChat) -> None:
    deltas = list(chat.stream(HELLO, GREEDY))
    done = Completion.fold(deltas)
    assert done.text == chat.tokenizer.decode(done.choices[0].ids)
    assert done.usage.completion_tokens == len(done.choices[0].ids) <= 12
    assert deltas[-1].usage is not None
    assert done.choices[0].finish_reason in ("stop", "length")
    assert list(map(bytes, (t.data for t in done.choices[0].tokens))) == [
        chat.tokenizer.token_bytes(i) for i in done.choices[0].ids
    ]


def test_a_stop_string_cuts_and_ends(chat: LocalChat) -> None:
    whole = Completion.fold(chat.complete("One, two, three,", GREEDY)).text
    stop = whole[4:7]
    cut = Completion.fold(chat.complete("One, two, three,", Sampling(temperature=0, max_tokens=12, stop=(stop,))))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_several_answers_and_cancel(chat: LocalChat) -> None:
    done = Completion.fold(chat.stream(HELLO, Sampling(max_tokens=4, n=2, seed=1)))
    assert [c.index for c in done.choices] == [0, 1]
    cancel = Cancel()
    stream = chat.stream(HELLO, Sampling(temperature=0), cancel=cancel)
    next(stream)
    cancel.set()
    assert Completion.fold(stream).choices[0].finish_reason == "cancelled"


def test_next_and_words(chat: LocalChat) -> None:
    table = chat.next("Listen to your", 20)
    assert len(table) == 20
    assert [c.logprob for c in table] == sorted((c.logprob for c in table), reverse=True)
    assert chat.tokenizer.token_bytes(table[0].id or 0).decode() == table[0].text
    words = chat.word_sums("Listen to your", ["heart", "inner voice"])
    assert 0 < words["inner voice"] < words["heart"] < 1
    assert chat.word_sums("Listen to your ", ["heart"])["heart"] == pytest.approx(words["heart"], rel=1e-5)
    single = [c for c in chat.next("Listen to your", 200) if c.text == " heart"]
    assert not single or words["heart"] <= math.exp(single[0].logprob) * 1.001
    assert chat.next(HELLO, 3)


def test_rank(chat: LocalChat) -> None:
    scores = chat.rank("The capital of France is", ["Paris", "a banana tree"])
    assert scores[0] > scores[1]
    assert len(chat.rank(HELLO, ["Hello!", "xqzzt"])) == 2
    with pytest.raises(UsageError):
        chat.rank("a", [])
    with pytest.raises(UsageError, match="empty"):
        chat.rank(HELLO, ["a", ""])


def test_a_second_turn_reads_only_what_is_new(chat: LocalChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the template and the tokenizer, which must spell the first answer with the tokens that were drawn."""
    rows, run = 0, chat.engine._backend.run

    def counted(pieces: Any) -> Any:
        nonlocal rows
        rows += sum(len(piece.ids) for piece in pieces)
        return run(pieces)

    monkeypatch.setattr(chat.engine._backend, "run", counted)
    sampling = Sampling(temperature=0, max_tokens=24)
    first = Conversation.of("Here are some sentences about ships. " + "The grey ship sailed slowly north again. " * 122)
    one = Completion.fold(chat.stream(first, sampling))
    assert one.usage.prompt_tokens > 1000
    assert rows >= one.usage.prompt_tokens
    rows = 0
    second = first.add("assistant", one.text).add("user", "Which colour was the ship?")
    two = Completion.fold(chat.stream(second, Sampling(temperature=0, max_tokens=1)))
    known = one.usage.prompt_tokens + one.usage.completion_tokens - 1  # the last token was drawn, never fed
    assert two.usage.cached_tokens >= known
    assert rows == two.usage.prompt_tokens - two.usage.cached_tokens <= 40


def test_a_draft_model_and_little_memory_change_no_answer(chat: LocalChat, fetched: object) -> None:
    expected = Completion.fold(chat.stream(HELLO, GREEDY)).text
    small = open_chat(str(fetched), draft=str(fetched), kv_bytes=8 << 20)
    assert isinstance(small, LocalChat)
    try:
        assert Completion.fold(small.stream(HELLO, GREEDY)).text == expected
        assert small.engine.kv_bytes_used[0] <= 8 << 20
        with pytest.raises(ContextOverflow, match="kv_bytes"):
            Completion.fold(small.complete("ship " * 1500, GREEDY))
    finally:
        small.close()
    with pytest.raises(UsageError, match="above 0"):
        open_chat(str(fetched), kv_bytes=-1)
