"""What is written down of requests, what is not, and how it is read again."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from live import Endless, Scripted, served

from ladderlm import store
from ladderlm.errors import UsageError
from ladderlm.serve import log
from ladderlm.serve.log import Filter, RequestLog
from ladderlm.serve.models import Models
from ladderlm.serve.trail import Trail
from ladderlm.types import Usage

pytest.importorskip("uvicorn")
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def rows(url: str, many: int, **wanted: object) -> list[dict]:
    """The log, once it holds `many` rows."""
    until = time.monotonic() + 10
    while len(found := httpx.get(f"{url}/v1/requests", params=wanted).json()["data"]) < many:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


def both(ref: str) -> Scripted | Endless:
    return Endless() if ref == "endless" else Scripted()


def test_a_row_tells_what_a_request_took(workspace: Path) -> None:
    (workspace / "config.toml").write_text('[prices."scripted"]\ninput = 1000000\noutput = 2000000\n')
    with served(Models(("scripted", "endless"), opener=both)) as url:
        whole = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
        httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True})
        httpx.post(f"{url}/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 1})
        httpx.post(f"{url}/v1/chat/completions", json={"messages": []})
        httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "model": "nothing"})
        found = rows(url, 5)[::-1]
        first = found[0]
        assert first["request"] == whole.headers["x-request-id"]
        assert (first["route"], first["model"], first["status"]) == ("/v1/chat/completions", "scripted", 200)
        assert (first["prompt_tokens"], first["completion_tokens"], first["finish_reason"]) == (3, 4, "stop")
        assert 0 < first["first_ms"] <= first["total_ms"]
        assert first["cost"] == pytest.approx(3 + 8)
        assert (first["asked"], first["answered"]) == (None, None)
        assert [(r["prompt_tokens"], r["completion_tokens"]) for r in found[1:3]] == [(3, 4), (6, 2)]
        assert [(r["status"], r["model"]) for r in found[3:]] == [(400, ""), (404, "")]
        assert len(rows(url, 2, status=4)) == 2
        total = httpx.get(f"{url}/v1/usage", params={"group_by": "model", "model": "scripted"}).json()["data"]
        assert [(t["requests"], t["prompt_tokens"], t["completion_tokens"]) for t in total] == [(3, 12, 10)]


def test_a_stream_that_was_left_counts_what_was_said() -> None:
    with served(Models(("endless",), opener=both)) as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
            next(stream.iter_lines())
        found = rows(url, 1)[0]
        assert (found["status"], found["model"], found["finish_reason"]) == (200, "endless", "abort")


def test_content_is_kept_where_that_was_asked_for() -> None:
    secret = "nobody else's business"
    with served(Models(("scripted",), opener=both), log=RequestLog(content=True)) as url:
        body = {"messages": [{"role": "user", "content": secret}], "stream": True}
        httpx.post(f"{url}/v1/chat/completions", json=body)
        httpx.post(f"{url}/v1/keys", json={"name": "k"})
        with closing(sqlite3.connect(store.home() / "ladderlm.sqlite")) as db:
            until = time.monotonic() + 10
            while len(kept := db.execute("SELECT route, asked, answered FROM requests ORDER BY id").fetchall()) < 2:
                assert time.monotonic() < until
                time.sleep(0.05)
    assert json.loads(kept[0][1])["messages"][0]["content"] == secret
    assert kept[0][2] == "Héllo world"
    assert kept[1] == ("/v1/keys", None, None)


def call(model: str = "m", status: int = 200, **told: float) -> Trail:
    route = "/v1/chat/completions"
    return Trail("req_1", "POST", route, route=route, model=model, status=status, spent=Usage(3, 4), **told)


def write(*ended: Trail) -> None:
    with closing(store.database()) as db:
        log.write(db, ended)


def test_export_as_lines_and_as_a_table() -> None:
    write(call(), call(model="=cmd()", status=404))
    lines = [json.loads(line) for line in "".join(log.exported(Filter(), "jsonl")).splitlines()]
    assert [(r["model"], r["status"]) for r in lines] == [("m", 200), ("=cmd()", 404)]
    table = list(csv.DictReader(io.StringIO("".join(log.exported(Filter(), "csv")))))
    assert [r["model"] for r in table] == ["m", "'=cmd()"], "a spreadsheet must not run what a client sent"
    assert list(log.exported(Filter(status=4, model="m"), "jsonl")) == []
    with pytest.raises(UsageError, match="no format"):
        log.exported(Filter(), "xml")


def test_the_log_forgets_and_the_sums_do_not() -> None:
    write(call(at=time.time() - 10 * 86400), call())
    assert log.forget(5) == 1
    assert len(log.requests(Filter())) == 1
    assert sum(day["requests"] for day in log.usage(Filter())) == 2
    assert log.usage(Filter(user="nobody"), ()) == [
        {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "cost": 0}
    ]


def test_writing_does_not_hold_up_who_asks() -> None:
    """A database that somebody has locked delays the log, and nobody else."""
    written = RequestLog()
    with store.transaction():
        began = time.monotonic()
        for _ in range(5000):
            written.put(call())
        assert time.monotonic() - began < 2
    written.close()
    assert log.usage(Filter(), ())[0]["requests"] == 5000


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_server_keeps_what_it_wrote(workspace: Path) -> None:
    command = [sys.executable, "-m", "ladderlm", "serve", "echo", "--port", "0", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            text += child.stdout.readline()  # type: ignore[union-attr]
        url = json.loads(text)["url"]
        for _ in range(20):
            httpx.post(f"{url}/v1/chat/completions", json=CHAT)
        time.sleep(1.0)  # five times what may be lost
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(log.requests(Filter())) == 20
    with closing(sqlite3.connect(workspace / "ladderlm.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
