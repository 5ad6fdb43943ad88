"""Drain, deadlines, queue limits, slow clients, and a model that is replaced under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Endless, Scripted, served

from ladderlm import store
from ladderlm.errors import Overloaded, Unavailable
from ladderlm.serve.bridge import BUFFER, Bridge
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Cancel, Chat, Conversation, Delta, Sampling

pytest.importorskip("uvicorn")
posix = pytest.mark.skipif(os.name != "posix", reason="signals")
HELLO = [{"role": "user", "content": "hello"}]
LONG = " ".join(f"w{i}" for i in range(40))


class Slow(EchoChat):
    """Says a word every 50 ms."""

    def __init__(self, ref: str = "") -> None:
        super().__init__(0.05)


def body(text: str = LONG, **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


# --- Ending -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def child(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own that echoes a word every 50 ms, and its URL."""
    program = (
        "import ladderlm.talk.echo as e, sys\n"
        "old = e.EchoChat.__init__\n"
        "e.EchoChat.__init__ = lambda self, delay=0.05: old(self, 0.05)\n"
        "from ladderlm.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "serve", "echo", "--port", "0", "--json", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += process.stdout.readline()
        yield process, json.loads(text)["url"]
    finally:
        process.kill()
        process.communicate()


def _stream(url: str, told: list[str], ready: threading.Event) -> None:
    with (
        contextlib.suppress(httpx.HTTPError),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body(stream=True), timeout=30) as answer,
    ):
        for line in answer.iter_lines():
            told.append(line)
            ready.set()


@posix
def test_sigterm_finishes_the_streams_and_refuses_new_ones() -> None:
    with child("--drain", "20") as (process, url):
        told, ready = list[str](), threading.Event()
        reader = threading.Thread(target=_stream, args=(url, told, ready))
        reader.start()
        assert ready.wait(20)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 5
        while httpx.get(f"{url}/ready").status_code == 200 and time.monotonic() < until:
            time.sleep(0.02)
        answer = httpx.get(f"{url}/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert httpx.get(f"{url}/health").status_code == 200
        refused = httpx.post(f"{url}/v1/chat/completions", json=body())
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert "retry-after" in refused.headers
        reader.join(20)
        assert told[-2:] == ["data: [DONE]", ""] or told[-1] == "data: [DONE]"
        assert process.wait(10) == 0


@posix
def test_when_the_time_to_drain_is_over_it_ends_all_the_same() -> None:
    with child("--drain", "0.3") as (process, url):
        told, ready = list[str](), threading.Event()
        reader = threading.Thread(target=_stream, args=(url, told, ready))
        reader.start()
        assert ready.wait(20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        reader.join(10)
        words = "".join(line for line in told if "content" in line)
        assert f"w{LONG.count(' ')}" not in words


@posix
def test_a_second_signal_ends_it_at_once() -> None:
    with child("--drain", "60") as (process, url):
        told, ready = list[str](), threading.Event()
        reader = threading.Thread(target=_stream, args=(url, told, ready))
        reader.start()
        assert ready.wait(20)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(10) == 0
        reader.join(10)


def test_draining_refuses_and_waits_for_those_who_are_here() -> None:
    bridge = Bridge()
    admitted = bridge.admitted()
    admitted.__enter__()
    waiter = threading.Thread(target=bridge.drain, args=(10.0,))
    waiter.start()
    time.sleep(0.05)
    with pytest.raises(Unavailable), bridge.admitted():
        pass
    assert waiter.is_alive()
    admitted.__exit__(None, None, None)
    waiter.join(5)
    assert not waiter.is_alive()


def test_nothing_more_is_opened_when_it_ends() -> None:
    opened: list[str] = []

    def opener(ref: str) -> Chat:
        opened.append(ref)
        models.stop()
        return Scripted()

    models = Models(("a", "b", "c"), opener=opener)
    models.preload(["a", "b", "c"]).join(5)
    assert opened == ["a"]


# --- Deadlines ----------------------------------------------------------------------------------------------------


def test_a_request_says_how_long_it_may_take() -> None:
    with served(Models(("m",), opener=Slow)) as url:
        path = f"{url}/v1/chat/completions"
        began = time.monotonic()
        late = httpx.post(path, json=body(), headers={"x-request-timeout": "0.2"})
        assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
        assert time.monotonic() - began < 1.5
        for wrong in ("soon", "0", "-1", "nan", "inf"):
            answer = httpx.post(path, json=body("a"), headers={"x-request-timeout": wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")
        assert httpx.post(path, json=body("a"), headers={"x-request-timeout": "30"}).status_code == 200


def test_a_deadline_holds_in_the_queue_too() -> None:
    with served(Models(("m",), opener=Slow), bridge=Bridge(workers=1)) as url:
        path = f"{url}/v1/chat/completions"
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(httpx.post, path, json=body(), timeout=30)
            time.sleep(0.3)
            began = time.monotonic()
            late = httpx.post(path, json=body("a"), headers={"x-request-timeout": "0.2"})
            assert (late.status_code, time.monotonic() - began < 1.5) == (504, True)
            assert first.result().status_code == 200


# --- Queue --------------------------------------------------------------------------------------------------------


def test_beyond_the_queue_a_request_learns_when_to_come_again() -> None:
    with served(Models(("m",), opener=Slow), bridge=Bridge(workers=2, limit=4)) as url:
        path = f"{url}/v1/chat/completions"
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: httpx.post(path, json=body(), timeout=60), range(8)))
        refused = [answer for answer in found if answer.status_code == 429]
        assert sorted(answer.status_code for answer in found) == [200] * 4 + [429] * 4
        for answer in refused:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["type"] == "rate_limit_error"


def test_the_wait_is_estimated_by_how_fast_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("ladderlm.serve.bridge.time.monotonic", lambda: now)
    bridge = Bridge(workers=2, limit=12)
    with contextlib.ExitStack() as held:
        for _ in range(10):
            with bridge.admitted():
                now += 3.0  # one ends every three seconds
        for _ in range(12):
            held.enter_context(bridge.admitted())
        with pytest.raises(Overloaded) as full, bridge.admitted():
            pass
    assert full.value.after == pytest.approx(10 * 2.7, abs=0.5)  # ten wait; nine gaps between ten ends


# --- Slow and vanished clients ------------------------------------------------------------------------------------


def test_readers_that_lag_hold_no_worker() -> None:
    """Two workers, six streams that nobody reads: a seventh still gets its answer, and the six go on when read."""

    def start(cancel: Cancel) -> Iterator[Delta]:
        for i in range(4 * BUFFER):
            yield Delta(text=str(i))

    async def work() -> None:
        bridge = Bridge(workers=2)
        lagging = [bridge.stream(start) for _ in range(6)]
        for stream in lagging:
            assert (await asyncio.wait_for(anext(stream), 10))[0].text == "0"
        quick = [d.text async for batch in bridge.stream(start) for d in batch]
        assert len(quick) == 4 * BUFFER
        for stream in lagging:
            rest = [d.text async for batch in stream for d in batch]
            assert rest[-1] == str(4 * BUFFER - 1)

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_stream_that_was_put_aside_is_closed_when_its_reader_goes() -> None:
    ended = threading.Event()

    def start(cancel: Cancel) -> Iterator[Delta]:
        try:
            while True:
                yield Delta(text="x")
        finally:
            ended.set()

    async def work() -> None:
        stream = Bridge(workers=1).stream(start)
        await anext(stream)
        await asyncio.sleep(0.5)
        await stream.aclose()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(work())


class Flood(Endless):
    """Endless, and much of it."""

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        try:
            while not (cancel and cancel.is_set()):
                yield Delta(text="x" * 4096)
        finally:
            self.ended.set()


def test_clients_that_read_nothing_block_nobody_and_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladderlm.serve.server.SEND_TIMEOUT", 1.0)
    floods: list[Flood] = []

    def opener(ref: str) -> Chat:
        if ref == "echo":
            return EchoChat()
        floods.append(Flood())
        return floods[-1]

    with served(Models(("flood", "echo"), opener=opener), bridge=Bridge(workers=2)) as url:
        host, port = url.removeprefix("http://").split(":")
        data = json.dumps(body("a", model="flood", stream=True)).encode()
        kind = "Content-Type: application/json"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        with contextlib.ExitStack() as held:
            for _ in range(4):
                deaf = held.enter_context(socket.create_connection((host, int(port))))
                deaf.sendall(head.encode() + data)
            time.sleep(0.5)
            answer = httpx.post(f"{url}/v1/chat/completions", json=body("hi", model="echo"), timeout=20)
            assert answer.status_code == 200
            assert floods[0].ended.wait(10)  # given up though the sockets are still open


# --- A folder that is replaced under load -------------------------------------------------------------------------


def test_a_model_replaced_under_load_drops_no_stream() -> None:
    def replace(text: str) -> None:
        made = store.make_dir(store.models_dir() / f".{text}")
        (made / "config.json").write_text("{}")
        (made / "says").write_text(text)
        path = store.models_dir() / "m"
        if path.exists():
            path.rename(store.models_dir() / f".old-{text}")
        made.rename(path)

    opened: list[Named] = []

    class Named(Slow):
        def __init__(self, ref: str) -> None:
            super().__init__()
            self.says = (store.models_dir() / ref / "says").read_text()
            self.closed = False
            opened.append(self)

        def stream(self, conversation: Conversation, sampling: Sampling, **more: Any) -> Iterator[Delta]:
            for delta in super().stream(Conversation.of(" ".join([self.says] * 20)), sampling, **more):
                assert not self.closed
                yield delta

        def close(self) -> None:
            self.closed = True

    replace("v0")
    with served(Models((), opener=Named)) as url:

        def ask(number: int) -> str:
            time.sleep(number * 0.05)
            answer = httpx.post(f"{url}/v1/chat/completions", json=body("a", model="m"), timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(24) as pool:
            answers = [pool.submit(ask, i) for i in range(24)]
            for version in ("v1", "v2"):
                time.sleep(0.5)
                replace(version)
            found = [answer.result() for answer in answers]
    assert all(len(set(text.split())) == 1 and len(text.split()) == 20 for text in found)  # never half and half
    assert {text.split()[0] for text in found} == {"v0", "v1", "v2"}
    assert [chat.closed for chat in opened] == [True, True, False]
    assert Path(store.models_dir()).exists()
