"""Responses in the background when the server is told to end, is killed, or is full: none stays in progress."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Endless, served
from test_life import LONG, body, child

from ladderlm import store
from ladderlm.errors import Unavailable
from ladderlm.serve import responses
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.models import Models
from ladderlm.types import Cancel, Delta

pytest.importorskip("uvicorn")
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def begun(url: str, text: str = LONG, **fields: Any) -> str:
    """The id of a response that is being made in the background."""
    answer = httpx.post(f"{url}/v1/responses", json={"input": text, "background": True, **fields}, timeout=20)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued"), answer.text
    return str(answer.json()["id"])


def stored(workspace: Path, id: str) -> dict[str, Any]:
    with closing(sqlite3.connect(workspace / "ladderlm.sqlite")) as db:
        found: dict[str, Any] = json.loads(db.execute("SELECT body FROM responses WHERE id = ?", (id,)).fetchone()[0])
        return found


def said(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for item in answer["output"] for part in item["content"])


@posix
def test_one_that_ends_within_the_drain_is_complete(workspace: Path) -> None:
    with child("--drain", "20") as (process, url):
        id = begun(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    found = stored(workspace, id)
    assert (found["status"], said(found), found["error"]) == ("completed", LONG, None)


@posix
@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT,)])
def test_one_that_does_not_has_failed_and_says_why(workspace: Path, signals: tuple[signal.Signals, ...]) -> None:
    with child("--drain", "0.5") as (process, url):
        id = begun(url)
        time.sleep(0.4)
        for each in signals:
            process.send_signal(each)
        assert process.wait(20) == 0
    found = stored(workspace, id)
    assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
    assert "the server ended" in found["error"]["message"]
    assert LONG.startswith(said(found))
    assert 0 < len(said(found)) < len(LONG)  # what there was is kept
    assert found["output"][0]["status"] == "incomplete"


@posix
def test_one_whose_server_was_killed_has_failed_when_another_starts(workspace: Path) -> None:
    with child() as (process, url):
        id = begun(url)
        whole = httpx.post(f"{url}/v1/responses", json={"input": "a b"}, timeout=20).json()
        process.kill()
        process.wait()
    assert stored(workspace, id)["status"] == "queued"
    with child() as (process, url):
        assert httpx.get(f"{url}/v1/responses/{id}").json()["status"] == "failed"
        until = time.monotonic() + 10
        while (found := stored(workspace, id))["status"] != "failed":
            assert time.monotonic() < until
            time.sleep(0.02)
        assert found["error"] == {"code": "server_error", "message": responses.RESTARTED}
        assert stored(workspace, whole["id"]) == whole
        again = {"input": "go on", "previous_response_id": id}
        assert httpx.post(f"{url}/v1/responses", json=again, timeout=20).status_code == 200


def test_what_was_begun_since_is_nobodys_orphan() -> None:
    def put(id: str, status: str) -> None:
        made = {"id": id, "created_at": 1, "previous_response_id": None, "status": status, "output": []}
        responses.keep("u", made, [])

    for status in ("queued", "in_progress", "completed", "cancelled"):
        put(f"resp_{status}", status)
    last = responses.last_row()
    put("resp_new", "queued")
    assert responses.fail_orphans(last) == 2
    with store.reading() as db:
        found = [json.loads(row[0])["status"] for row in db.execute("SELECT body FROM responses ORDER BY rowid")]
    assert found == ["failed", "failed", "completed", "cancelled", "queued"]
    assert responses.fail_orphans(last) == 0


def test_a_full_server_refuses_at_once() -> None:
    with served(Models(("m",), opener=lambda ref: Endless()), bridge=Bridge(workers=2, limit=1)) as url:
        id = begun(url, "a")
        answer = httpx.post(f"{url}/v1/responses", json={"input": "b", "background": True}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert id.startswith("resp_")


@posix
def test_a_batch_goes_on_after_a_server_that_was_told_to_end(workspace: Path) -> None:
    words, many = " ".join(LONG.split()[:12]), 12

    def batch(url: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{url}/v1/batches/{id}").json()
        return found

    rows = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/responses", "body": {"input": words}} for i in range(many)
    ]
    with child("--drain", "0.3") as (process, url):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        made = httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", lines)}).json()
        asked = {"input_file_id": made["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
        id = httpx.post(f"{url}/v1/batches", json=asked).json()["id"]
        until = time.monotonic() + 20
        while batch(url)["request_counts"]["completed"] < 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    with child() as (process, url):
        until = time.monotonic() + 30
        while (found := batch(url))["status"] != "completed":
            assert time.monotonic() < until, found
            time.sleep(0.05)
        assert found["request_counts"] == {"total": many, "completed": many, "failed": 0}
        text = httpx.get(f"{url}/v1/files/{found['output_file_id']}/content").text
    assert {said(json.loads(line)["response"]["body"]) for line in text.splitlines()} == {words}  # none is cut off


# --- Streams that the server's end cuts off -----------------------------------------------------------------------


def test_a_reader_is_told_that_its_stream_was_cut_off() -> None:
    stuck, go = threading.Event(), threading.Event()

    def long_step(cancel: Cancel) -> Iterator[Delta]:
        yield Delta(text="a")
        stuck.set()
        go.wait(30)
        yield Delta(text="b")

    def obedient(cancel: Cancel) -> Iterator[Delta]:
        while not cancel.is_set():
            yield Delta(text="a")
            time.sleep(0.005)

    async def work() -> None:
        for start in (long_step, obedient):
            bridge = Bridge(workers=1)
            stream = bridge.stream(start)
            assert (await anext(stream))[0].text == "a"
            if start is long_step:
                await asyncio.to_thread(stuck.wait, 30)
            bridge.close()
            with pytest.raises(Unavailable, match="the server ended"):
                async with asyncio.timeout(5):
                    async for _ in stream:
                        pass

    try:
        asyncio.run(work())
    finally:
        go.set()


@posix
def test_what_is_cut_off_is_not_told_as_whole() -> None:
    with child("--drain", "0.5") as (process, url), ThreadPoolExecutor(2) as pool:
        path = f"{url}/v1/chat/completions"
        whole = pool.submit(httpx.post, path, json=body(), timeout=30)
        streamed = pool.submit(httpx.post, path, json=body(stream=True), timeout=30)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert whole.result().status_code == 503
        last = [line for line in streamed.result().text.splitlines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
