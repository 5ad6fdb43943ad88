"""Batches: resumed, retried, stopped in order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ladderlm import events, store
from ladderlm.errors import AuthError, FormatError, NetworkError, StorageError
from ladderlm.talk import batch
from ladderlm.talk.echo import EchoChat
from ladderlm.talk.prices import OverBudget
from ladderlm.types import Cancel, Delta, Sampling, Usage

CHAT = EchoChat()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "FIRST_PAUSE", 0.001)


def echo(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
    return CHAT.stream(batch.conversation_of(row), Sampling(), cancel=cancel)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "prompt": f"question {i}"} for i in range(count)]


def test_rows_get_ids_and_must_differ(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"id": 7, "prompt": "b"}\n')
    assert [r["id"] for r in batch.read_rows(file)] == ["1", 7]
    for text in ('{"id": "1"}\n{"id": 1}\n', "[]\n", "{\n"):
        file.write_text(text)
        with pytest.raises(FormatError):
            batch.read_rows(file)


def test_answers_all_and_then_nothing_again(tmp_path: Path) -> None:
    out, seen = tmp_path / "deep" / "out.jsonl", []
    with events.listening(seen.append):
        result = batch.run(rows(9), out, echo, concurrency=3)
    assert (result.answered, result.skipped, result.failed, result.left) == (9, 0, 0, 0)
    assert {r["id"]: r["text"] for r in store.read_jsonl(out)} == {str(i): f"question {i}" for i in range(9)}
    assert (seen[-1].done, seen[-1].total, seen[-1].finished) == (9, 9, True)
    before = out.read_bytes()
    assert batch.run(rows(9), out, echo).skipped == 9
    assert out.read_bytes() == before


@pytest.mark.parametrize("torn", ['{"id": "3", "te', "\x00", '{"id": "3", "text": "whole"}'])
def test_a_torn_last_line_is_tolerated(tmp_path: Path, torn: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": "0", "text": "kept"}\n' + torn, encoding="utf-8")
    result = batch.run(rows(4), out, echo)
    whole = torn.endswith("}")
    assert (result.answered, result.skipped) == ((2, 2) if whole else (3, 1))
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert sorted(line["id"] for line in lines) == ["0", "1", "2", "3"]
    assert lines[0]["text"] == "kept"


def test_what_may_pass_is_tried_again_and_what_failed_is_asked_again(tmp_path: Path) -> None:
    out, tries, broken = tmp_path / "out.jsonl", dict.fromkeys("012", 0), {"1"}

    def ask(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
        tries[row["id"]] += 1
        if row["id"] in broken or (row["id"] == "2" and tries["2"] == 1):
            raise NetworkError("gone")
        return echo(row, cancel)

    result = batch.run(rows(3), out, ask, concurrency=1)
    assert (result.answered, result.failed) == (2, 1)
    assert tries == {"0": 1, "1": batch.TRIES, "2": 2}
    assert [r["error"] for r in store.read_jsonl(out) if "error" in r] == ["gone"]
    broken.clear()
    assert batch.run(rows(3), out, ask).answered == 1


def test_a_bad_row_does_not_stop_the_others(tmp_path: Path) -> None:
    result = batch.run([{"id": "x"}, *rows(2)], tmp_path / "out.jsonl", echo)
    assert (result.answered, result.failed) == (2, 1)


def test_a_refused_key_ends_it_and_a_spent_budget_ends_it_in_order(tmp_path: Path) -> None:
    def refused(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
        raise AuthError("no")

    with pytest.raises(AuthError):
        batch.run(rows(5), tmp_path / "a.jsonl", refused)
    left = iter(range(2))

    def poor(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
        if next(left, None) is None:
            raise OverBudget("spent")
        yield Delta(text="x", finish_reason="stop", usage=Usage(1, 1, cost=0.25))

    result = batch.run(rows(5), tmp_path / "b.jsonl", poor, concurrency=1)
    assert (result.answered, result.left, result.cost, result.stopped) == (2, 3, 0.5, "spent")


def test_two_batches_do_not_write_one_file(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(row: batch.Row, cancel: Cancel) -> Iterator[Delta]:
        began.set()
        go.wait(10)
        return echo(row, cancel)

    first = threading.Thread(target=batch.run, args=(rows(1), tmp_path / "out.jsonl", slow))
    first.start()
    try:
        assert began.wait(10)
        with pytest.raises(StorageError, match="lock"):
            batch.run(rows(1), tmp_path / "out.jsonl", echo)
    finally:
        go.set()
        first.join()


def test_messages_and_system() -> None:
    talk = batch.conversation_of({"id": "1", "messages": [{"role": "user", "content": "hi"}]}, "sys")
    assert [m.role for m in talk.messages] == ["system", "user"]
    with pytest.raises(FormatError):
        batch.conversation_of({"id": "1", "messages": [{"role": "user"}]})
