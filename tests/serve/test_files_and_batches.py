"""Files and batches, through the official client and its own types."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import Endless, Scripted, served

from ladderlm.serve import accounts, files
from ladderlm.serve.batches import ENDPOINTS, LAST
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Conversation, Delta

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")


class Failing(Scripted):
    """Fails now and then."""

    def stream(self, conversation: Any, sampling: Any, **rest: Any) -> Iterator[Delta]:
        if "bad" in conversation.messages[-1].text:
            raise ZeroDivisionError
        return super().stream(conversation, sampling, **rest)


def opened(ref: str) -> Any:
    return {"endless": Endless, "echo": EchoChat}.get(ref, Failing)()


@pytest.fixture
def url() -> Iterator[str]:
    with served(Models(("scripted", "endless", "echo"), opener=opened), upload_limit=100_000) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


def strictly(made: Any) -> Any:
    """The same, if it is what the client's types say, to the letter."""
    type(made).model_validate(made.model_dump(), strict=True)
    return made


def test_a_file_comes_back_as_it_went(client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 20
    made = strictly(client.files.create(file=("../../etc/pass\nwd.bin", data), purpose="user_data"))
    assert isinstance(made, openai.types.FileObject)
    assert (made.bytes, made.purpose, made.status) == (len(data), "user_data", "processed")
    assert strictly(client.files.retrieve(made.id)) == made
    assert client.files.content(made.id).read() == data
    assert made.id in [f.id for f in client.files.list(purpose="user_data")]
    assert made.id not in [f.id for f in client.files.list(purpose="batch")]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)


def test_files_are_listed_page_by_page(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{i}.txt", b"x"), purpose="vision").id for i in range(5)]
    assert [f.id for f in client.files.list(purpose="vision", limit=2)] == made[::-1]
    assert [f.id for f in client.files.list(purpose="vision", limit=2, order="asc")] == made


def test_a_file_is_kept_once_and_told_twice(workspace: Path) -> None:
    one, two = (files.put(io.BytesIO(b"same"), name, "batch", "user-local") for name in ("a", "b"))
    assert one.path == two.path
    assert workspace / "files" in one.path.parents
    files.delete(one.id, accounts.EVERYBODY)
    assert two.path.read_bytes() == b"same"
    files.delete(two.id, accounts.EVERYBODY)
    assert not two.path.exists()


def test_a_file_that_expires_is_gone(workspace: Path) -> None:
    made = files.put(io.BytesIO(b"brief"), "a", "batch", "user-local", expires_in=0.01)
    time.sleep(0.02)
    assert files.listed(accounts.EVERYBODY) == ([], False)
    assert files.sweep() == 1
    assert not made.path.exists()


@pytest.mark.parametrize("name", ["../secret", "..\\..\\x", "/etc/passwd", "con", "a\x00b", "é" * 300, "", "<script>"])
def test_a_name_is_never_a_path(workspace: Path, name: str) -> None:
    made = files.put(io.BytesIO(b"x"), name, "batch", "user-local")
    assert workspace / "files" in made.path.parents
    assert all(c.isprintable() for c in made.filename)
    assert made.path.read_bytes() == b"x"
    assert {p.parent for p in workspace.rglob("*") if p.is_file()} <= {workspace, made.path.parent}


def test_uploads_have_a_limit_and_a_purpose(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("big", b"x" * 200_000), purpose="batch")
    assert refused.value.status_code == 413
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a", b"x"), purpose="nonsense")
    assert httpx.post(f"{url}/v1/files", data={"purpose": "batch"}).status_code == 400
    assert httpx.post(f"{url}/v1/files", json={"purpose": "batch"}).status_code == 400


def test_a_file_answers_as_something_to_be_saved(client: openai.OpenAI, url: str) -> None:
    made = client.files.create(file=("page.html", b"<script>alert(1)</script>"), purpose="user_data")
    answer = httpx.get(f"{url}/v1/files/{made.id}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


# --- Batches ------------------------------------------------------------------------------------------------------


def lines(*bodies: dict[str, Any], url: str = "/v1/chat/completions") -> bytes:
    rows = [{"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **more}


def begun(client: openai.OpenAI, data: bytes, endpoint: str = "/v1/chat/completions") -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "a test"}
    )  # type: ignore[call-overload]
    return strictly(made)


def done(client: openai.OpenAI, id: str, seconds: float = 20) -> openai.types.Batch:
    until = time.monotonic() + seconds
    while (batch := client.batches.retrieve(id)).status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < until, batch
        time.sleep(0.05)
    return strictly(batch)


def rows_of(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    return {row["custom_id"]: row for row in map(json.loads, client.files.content(file).text.splitlines())}


def test_a_batch_round_trips(client: openai.OpenAI) -> None:
    made = begun(client, lines(said("one"), said("bad"), said("two", max_tokens=1), said("three", max_tokens=0)))
    assert (made.status, made.metadata) == ("validating", {"for": "a test"})
    batch = done(client, made.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    answers, errors = rows_of(client, batch.output_file_id), rows_of(client, batch.error_file_id)
    assert list(answers) == ["r0", "r2"]
    whole = openai.types.chat.ChatCompletion.model_validate(answers["r0"]["response"]["body"])
    assert whole.choices[0].message.content == "Héllo world"
    assert answers["r2"]["response"]["status_code"] == 200
    assert answers["r2"]["response"]["request_id"].startswith("req-")
    assert [(name, row["response"]["status_code"]) for name, row in errors.items()] == [("r1", 500), ("r3", 400)]
    assert errors["r1"]["response"]["body"]["error"]["message"] == "internal error"
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (6, 5, 11)
    assert batch.model == "scripted"
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
    assert made.id in [b.id for b in client.batches.list(limit=1)]


def test_completions_and_logged_under_its_owner(client: openai.OpenAI, url: str) -> None:
    made = begun(client, lines({"model": "scripted", "prompt": "a b"}, url="/v1/completions"), "/v1/completions")
    batch = done(client, made.id)
    answer = rows_of(client, batch.output_file_id)["r0"]["response"]
    assert openai.types.Completion.model_validate(answer["body"]).choices[0].text == "Héllo world"
    until = time.monotonic() + 5
    while True:
        logged = httpx.get(f"{url}/v1/requests", params={"route": "/v1/completions"}).json()["data"]
        if logged or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert logged[0]["request"] == answer["request_id"]


WRONG = {
    "not JSON": (b"{\n", "not JSON", 1),
    "no custom_id": (b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}\n', "custom_id", 1),
    "twice the same": (lines(said("a")) * 2, "came before", 2),
    "another endpoint": (lines(said("a"), url="/v1/keys"), "url must be", 1),
    "a path trick": (lines(said("a"), url="/v1/chat/completions/../../keys"), "url must be", 1),
    "another method": (lines(said("a")).replace(b"POST", b"GET"), "method must be", 1),
    "streamed": (lines(said("a", stream=True)), "not streamed", 1),
    "in the background": (lines(said("a", background=True)), "in the background already", 1),
    "nothing": (b"\n", "holds no request", None),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_batch_that_cannot_be_says_why_and_where(client: openai.OpenAI, what: str) -> None:
    data, message, line = WRONG[what]
    batch = done(client, begun(client, data).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert message in (batch.errors.data[0].message or "")
    assert batch.errors.data[0].line == line


def test_a_file_of_another_purpose_is_refused(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a", lines(said("a"))), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="upload it for: batch"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def test_a_cancelled_batch_gives_out_what_it_has(client: openai.OpenAI) -> None:
    made = begun(client, lines(said("a"), said("b", model="endless")))
    until = time.monotonic() + 10
    while (client.batches.retrieve(made.id).request_counts or made.request_counts).completed < 1:  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.05)
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = done(client, made.id)
    assert (batch.status, batch.request_counts.completed) == ("cancelled", 1)  # type: ignore[union-attr]
    assert list(rows_of(client, batch.output_file_id)) == ["r0"]
    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        client.batches.cancel(made.id)


def test_who_waits_goes_before_a_batch(client: openai.OpenAI) -> None:
    """While a batch of endless answers runs, a chat is answered."""
    made = begun(client, lines(*[said("a", model="endless")] * 8))
    time.sleep(0.3)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(client.chat.completions.create(**said("x"))))  # type: ignore[arg-type]
    asking.start()
    asking.join(10)
    assert found
    client.batches.cancel(made.id)
    assert done(client, made.id).status == "cancelled"


class Queued(Scripted):
    """Holds its first stream until `go`; remembers what it was asked, and how urgent that was."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go = threading.Event(), threading.Event()
        self.order: list[tuple[str, int]] = []

    def stream(self, conversation: Any, sampling: Any, *, priority: int = 0, **rest: Any) -> Iterator[Delta]:
        self.order.append((conversation.messages[-1].text, priority))
        self.inside.set()
        self.go.wait(30)
        return super().stream(conversation, sampling)

    def complete(self, prompt: Any, sampling: Any, *, priority: int = 0, **rest: Any) -> Iterator[Delta]:
        return self.stream(Conversation.of(prompt), sampling, priority=priority)

    def embed(self, documents: Any, dimensions: Any = None) -> Any:
        self.order.append((documents[0], -LAST))  # vectors have no queue but the server's
        return np.ones((1, 2), np.float32), 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_people_go_before_batches_of_every_kind(endpoint: str) -> None:
    chat, bridge = Queued(), Bridge(workers=1)
    field = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}.get(endpoint, "input")
    asked = [{"role": "user", "content": "batch"}] if field == "messages" else "batch"
    with served(Models(("m",), opener=lambda ref: chat), bridge=bridge) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)

        def ask(text: str) -> threading.Thread:
            body: dict[str, Any] = said(text, model="m")
            asking = threading.Thread(target=lambda: client.chat.completions.create(**body))
            asking.start()
            return asking

        def wait(jobs: int) -> None:
            until = time.monotonic() + 20
            while bridge._jobs.qsize() < jobs:
                assert time.monotonic() < until
                time.sleep(0.01)

        asking = [ask("first")]
        assert chat.inside.wait(20)
        made = begun(client, lines(*[{"model": "m", field: asked}] * 3, url=endpoint), endpoint)
        wait(3)
        asking.append(ask("person"))
        wait(4)
        chat.go.set()
        for each in asking:
            each.join(20)
        batch = done(client, made.id)
    assert batch.request_counts.completed == 3  # type: ignore[union-attr]
    assert chat.order == [("first", 0), ("person", 0), *[("batch", -LAST)] * 3]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_server_killed_in_a_batch_loses_nothing_that_was_counted(workspace: Path) -> None:
    many = 300
    child, url = _serve()
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
        bodies = [said(f"number {i} " * 20, model="echo") for i in range(many)]
        made = begun(client, lines(*bodies))
        until = time.monotonic() + 20
        while (counted := client.batches.retrieve(made.id).request_counts).completed < 20:  # type: ignore[union-attr]
            assert time.monotonic() < until
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert counted is not None
    with closing(sqlite3.connect(workspace / "ladderlm.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = dict(db.execute("SELECT line, answer FROM batch_answers").fetchall())
    assert counted.completed <= len(kept) < many
    child, url = _serve()
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
        batch = done(client, made.id, 60)
        assert (batch.status, batch.request_counts.completed) == ("completed", many)  # type: ignore[union-attr]
        answers = rows_of(client, batch.output_file_id)
        assert list(answers) == [f"r{i}" for i in range(many)]
        for i in range(many):
            assert answers[f"r{i}"]["response"]["body"]["choices"][0]["message"]["content"] == f"number {i} " * 20
        for text in kept.values():  # what was there before the kill is there as it was
            assert answers[json.loads(text)["custom_id"]] == json.loads(text)
    finally:
        child.kill()
        child.wait()


def _serve() -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "ladderlm", "serve", "echo", "--port", "0", "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    text = ""
    while not text.rstrip().endswith("}"):
        text += child.stdout.readline()  # type: ignore[union-attr]
    return child, json.loads(text)["url"]


def test_a_batch_ends_with_the_key_that_began_it() -> None:
    _, text = accounts.create_key("k")
    with served(Models(("endless",), opener=opened)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0, timeout=20)
        made = begun(client, lines(said("a", model="endless")))
        _, other = accounts.create_key("admin's")
        accounts.revoke_key(text)
        admin = openai.OpenAI(base_url=f"{url}/v1", api_key=other, max_retries=0, timeout=20)
        batch = done(admin, made.id)
        assert batch.status == "failed"
        assert batch.errors.data[0].code == "key_revoked"  # type: ignore[union-attr, index]
