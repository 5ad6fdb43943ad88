"""Priorities over HTTP and in Python: who goes first in the engine, and at the server's door."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import served

from ladderlm.serve.bridge import Bridge
from ladderlm.serve.models import Models
from ladderlm.talk import open_chat
from ladderlm.talk.local import LocalChat
from ladderlm.talk.wire import chat_body, completion_body
from ladderlm.types import AGE, Cancel, Conversation, Delta, Sampling

pytest.importorskip("uvicorn")
from pydantic import ValidationError

from ladderlm.serve.wire.chat import ChatBody
from ladderlm.serve.wire.raw import CompletionBody

HELLO = [{"role": "user", "content": "hello"}]
PROMPT = 40  # tokens: two blocks


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[LocalChat]:
    """A tiny model with memory for one request at a time."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_folder import save

    save(tmp_path / "m")
    sized = open_chat(str(tmp_path / "m"))
    assert isinstance(sized, LocalChat)
    block = sized.engine._backend.block_bytes
    sized.close()
    opened = open_chat(str(tmp_path / "m"), kv_bytes=2 * block)
    assert isinstance(opened, LocalChat)
    yield opened
    opened.close()


class Held:
    """Steps of `chat`'s engine wait until `go`; `order`: first tokens of prompts, in the order they were begun."""

    def __init__(self, chat: LocalChat) -> None:
        backend, self._scheduler = chat.engine._backend, chat.engine._scheduler
        self._run, backend.run = backend.run, self._held  # type: ignore[method-assign]
        self.begun: list[int] = []
        self.go = threading.Event()

    def _held(self, pieces: Any) -> Any:
        self.begun += [piece.ids[0] for piece in pieces if not len(piece.cache)]
        self.go.wait(30)
        return self._run(pieces)

    @property
    def order(self) -> list[int]:
        """The one that is overtaken while it runs may be begun twice."""
        return list(dict.fromkeys(self.begun))

    def wait(self, requests: int) -> None:
        """Until so many have come to the engine, and the first is in its first step."""
        until = time.monotonic() + 30
        while len(self._scheduler._waiting) + len(self._scheduler._active) < requests or not self.begun:
            assert time.monotonic() < until
            time.sleep(0.002)


def test_over_http_the_lowest_number_overtakes_the_queue(chat: LocalChat) -> None:
    held = Held(chat)
    with served(Models(("m",), opener=lambda ref: chat)) as url, ThreadPoolExecutor(8) as pool:

        def ask(first: int, **fields: Any) -> httpx.Response:
            body = {"prompt": [first] * PROMPT, "max_tokens": 2, **fields}
            return httpx.post(f"{url}/v1/completions", json=body, timeout=60)

        answers = []
        for number, fields in enumerate(({}, {}, {"priority": 3}, {"priority": 0}, {"priority": -2}), 1):
            answers.append(pool.submit(ask, number, **fields))
            held.wait(number)
        held.go.set()
        assert [a.result().status_code for a in answers] == [200] * 5
    assert held.order == [1, 5, 2, 4, 3]


def test_in_python_the_highest_goes_first(chat: LocalChat) -> None:
    held, sampling = Held(chat), Sampling(max_tokens=2)
    with ThreadPoolExecutor(4) as pool:

        def ask(first: int, priority: int) -> list[Delta]:
            return list(chat.complete([first] * PROMPT, sampling, priority=priority))

        answers = []
        for number, priority in enumerate((0, 0, -1, 1), 1):
            answers.append(pool.submit(ask, number, priority))
            held.wait(number)
        held.go.set()
        for answer in answers:
            answer.result()
    assert held.order == [1, 4, 2, 3]


def test_at_the_door_who_waits_for_a_worker_is_overtaken() -> None:
    order: list[str] = []
    go, inside = threading.Event(), threading.Event()

    def start(name: str) -> Any:
        def run(cancel: Cancel) -> Iterator[Delta]:
            order.append(name)
            inside.set()
            go.wait(30)
            yield Delta(text=name)

        return run

    async def work() -> None:
        bridge = Bridge(workers=1)

        async def drain(name: str, priority: int) -> None:
            async for _ in bridge.merge([start(name)], priority):
                pass

        first = asyncio.create_task(drain("first", 0))
        await asyncio.to_thread(inside.wait, 30)
        rest = []
        for name, priority in (("plain", 0), ("low", -1), ("high", 1)):
            rest.append(asyncio.create_task(drain(name, priority)))
            await asyncio.sleep(0.02)
        go.set()
        await asyncio.gather(first, *rest)

    asyncio.run(work())
    assert order == ["first", "high", "plain", "low"]


def test_at_the_door_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, ran, later = Bridge(workers=0), list[str](), 0.0
    monkeypatch.setattr("ladderlm.serve.bridge.time.monotonic", lambda: later)
    bridge._submit(lambda: ran.append("old"))
    later = 1.5 * AGE
    bridge._submit(lambda: ran.append("new"))
    bridge._submit(lambda: ran.append("urgent"), 1)
    for _ in range(3):
        bridge._jobs.get()[2]()
    assert ran == ["old", "urgent", "new"]


def test_the_field_on_the_wire() -> None:
    assert ChatBody.model_validate({"messages": HELLO, "priority": -3}).rank == 3
    assert CompletionBody.model_validate({"prompt": "a", "priority": 2}).rank == -2
    assert ChatBody.model_validate({"messages": HELLO, "priority": None}).rank == 0
    for wrong in ("high", 0.5, True, 10**9):
        with pytest.raises(ValidationError, match="priority"):
            ChatBody.model_validate({"messages": HELLO, "priority": wrong})


def test_a_remote_is_told() -> None:
    conversation, sampling = Conversation.of("a"), Sampling()
    assert chat_body("m", conversation, sampling, "max_tokens", 3)["priority"] == -3
    assert completion_body("m", "a", sampling, -1)["priority"] == 1
    assert "priority" not in chat_body("m", conversation, sampling, "max_tokens")
