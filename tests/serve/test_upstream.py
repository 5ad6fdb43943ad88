"""Another server's models behind our own routes: one of our servers in front of another, and wrong ones."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import pytest
from live import WORDS, Endless, Scripted, served

from ladderlm.errors import NotFound, Unavailable, UsageError
from ladderlm.serve.models import Models
from ladderlm.serve.upstream import Upstream
from ladderlm.types import Chat

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

ANSWER = "".join(WORDS)
HELLO = [{"role": "user", "content": "hello"}]


class Vectors(Scripted):
    """Tells vectors too."""

    def embed(self, documents: Any, dimensions: int | None = None) -> Any:
        import numpy as np

        return np.arange(len(documents) * (dimensions or 4), dtype=np.float32).reshape(len(documents), -1), 7


class Pair:
    """A server with models, and one in front of it."""

    def __init__(self) -> None:
        self.scripted, self.endless = Vectors(), Endless()
        self.front = self.back = ""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.front}/v1", api_key="none", max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    chats: dict[str, Chat] = {"scripted": pair.scripted, "endless": pair.endless}
    with served(Models(tuple(chats), opener=chats.__getitem__)) as back:
        upstream = Upstream(back, "lab/")
        upstream.ask()
        with served(Models(("own",), upstreams=[upstream], opener=lambda ref: Scripted())) as front:
            pair.front, pair.back = front, back
            yield pair


def test_its_models_stand_beside_our_own(pair: Pair) -> None:
    assert [m.id for m in pair.client.models.list()][:3] == ["own", "lab/scripted", "lab/endless"]
    assert pair.client.models.retrieve("lab/scripted").id == "lab/scripted"
    assert httpx.get(f"{pair.front}/ready").json()["models"][pair.back] == "ready"


def test_every_route_works_on_it(pair: Pair) -> None:
    said = pair.client.chat.completions.create(model="lab/scripted", messages=HELLO, logprobs=True, top_logprobs=2, n=2)
    assert [c.message.content for c in said.choices] == [ANSWER] * 2
    assert [t.token for t in said.choices[0].logprobs.content] == list(WORDS)
    assert (said.model, said.usage.prompt_tokens, said.usage.completion_tokens) == ("lab/scripted", 3, 8)
    chunks = list(
        pair.client.chat.completions.create(
            model="lab/scripted", messages=HELLO, stream=True, seed=4, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage.total_tokens == 7
    assert pair.scripted.asked[-1][1].seed == 4
    raw = pair.client.completions.create(model="lab/scripted", prompt="a b", echo=True, logprobs=1, max_tokens=1)
    assert raw.choices[0].text == "a bHé"
    assert raw.choices[0].logprobs.tokens == ["a", " b", "Hé"]
    vectors = pair.client.embeddings.create(model="lab/scripted", input=["x", "y"], dimensions=3)
    assert [d.embedding for d in vectors.data] == [[0, 1, 2], [3, 4, 5]]
    assert vectors.usage.prompt_tokens == 7
    near = httpx.post(f"{pair.front}/v1/next", json={"model": "lab/scripted", "prompt": "x", "k": 1})
    assert near.json()["tokens"][0]["text"] == WORDS[0]


def test_its_requests_are_measured_here(pair: Pair) -> None:
    pair.client.chat.completions.create(model="lab/scripted", messages=HELLO)
    text = httpx.get(f"{pair.front}/metrics").text
    assert 'vllm:time_to_first_token_seconds_count{model_name="lab/scripted"}' in text
    assert 'vllm:generation_tokens_total{model_name="lab/scripted"}' in text


def test_a_client_that_goes_away_stops_it_there(pair: Pair) -> None:
    pair.endless.ended.clear()
    body = {"model": "lab/endless", "messages": HELLO, "stream": True}
    with httpx.stream("POST", f"{pair.front}/v1/chat/completions", json=body, timeout=10) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert not pair.endless.ended.is_set()
    assert pair.endless.ended.wait(5)


def test_a_deadline_passes_through(pair: Pair) -> None:
    pair.endless.ended.clear()
    answer = httpx.post(
        f"{pair.front}/v1/chat/completions", json={"model": "lab/endless", "messages": HELLO},
        headers={"x-request-timeout": "0.4"}, timeout=20,
    )  # fmt: skip
    assert answer.status_code == 504
    assert pair.endless.ended.wait(5)


# --- What goes wrong there ----------------------------------------------------------------------------------------


class Wrong(http.server.BaseHTTPRequestHandler):
    """Lists one model and refuses in the way it is told."""

    status: ClassVar[int] = 200
    headers_told: ClassVar[dict[str, str]] = {}
    keys: ClassVar[list[str]] = []
    asked: ClassVar[int] = 0

    def _tell(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        for name, value in type(self).headers_told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        Wrong.keys.append(self.headers.get("authorization", ""))
        self._tell(200, {"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        Wrong.asked += 1
        Wrong.keys.append(self.headers.get("authorization", ""))
        self.rfile.read(int(self.headers["content-length"]))
        self._tell(Wrong.status, {"error": {"message": "the upstream says no", "type": "x", "code": None}})

    def log_message(self, *args: object) -> None: ...


@contextlib.contextmanager
def wrong(status: int, **headers: str) -> Iterator[str]:
    Wrong.status, Wrong.headers_told, Wrong.keys, Wrong.asked = status, headers, [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("theirs", "ours"), [(429, 429), (401, 502), (403, 502), (404, 404), (400, 400), (500, 502), (503, 502)]
)
def test_its_errors_pass_through_and_are_not_tried_again(theirs: int, ours: int) -> None:
    with wrong(theirs, **{"Retry-After": "7"}) as back:
        upstream = Upstream(back)
        upstream.ask()
        with served(Models((), upstreams=[upstream])) as front:
            answer = httpx.post(f"{front}/v1/chat/completions", json={"model": "m", "messages": HELLO}, timeout=20)
            assert answer.status_code == ours
            assert "error" in answer.json()
            assert Wrong.asked == 1
            if ours == 429:
                assert answer.headers["retry-after"] == "7"


def test_keys_come_from_the_environment_alone_and_are_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDERLM_UPSTREAM_KEY", "sk-general")
    monkeypatch.setenv("LADDERLM_UPSTREAM_KEY_LAB", "sk-lab")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    with wrong(401) as back:
        Upstream.parse(back).ask()
        named = Upstream.parse(f"lab={back}")
        named.ask()
        Upstream.parse(f"other={back}").ask()
        assert Wrong.keys == ["Bearer sk-general", "Bearer sk-lab", "Bearer sk-general"]
        assert (named.prefix, named.names) == ("lab/", ["lab/m"])
        with served(Models((), upstreams=[named])) as front:
            body = {"model": "lab/m", "messages": HELLO}
            answer = httpx.post(
                f"{front}/v1/chat/completions", json=body, headers={"authorization": "Bearer callers-own"}
            )
            assert Wrong.keys[-1] == "Bearer sk-lab"  # the caller's key stays here
            assert "sk-" not in answer.text + httpx.get(f"{front}/metrics").text
    with pytest.raises(UsageError, match="does not belong in a URL"):
        Upstream.parse("http://user:secret@127.0.0.1:1")
    with pytest.raises(UsageError):
        Upstream.parse("ftp://127.0.0.1")


def test_one_that_is_not_there_is_told_and_found_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladderlm.serve.upstream.REFRESH", 0.05)
    with wrong(200) as back:
        port = int(back.rsplit(":", 1)[1])
    upstream = Upstream(f"http://127.0.0.1:{port}")
    upstream.ask()
    models = Models((), upstreams=[upstream])
    assert upstream.state == "failed"
    with pytest.raises(Unavailable, match="cannot reach"):
        models.resolve("m")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Wrong)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        until = time.monotonic() + 10
        while models.names() != ["m"] and time.monotonic() < until:
            time.sleep(0.05)
        assert (models.resolve(None), upstream.state) == ("m", "ready")
        with pytest.raises(NotFound):
            models.resolve("other")
    finally:
        server.shutdown()
        server.server_close()


def test_our_own_model_of_that_name_comes_first() -> None:
    with wrong(200) as back:
        upstream = Upstream(back)
        upstream.ask()
        own = Scripted()
        models = Models(("m",), upstreams=[upstream], opener=lambda ref: own)
        assert models.names() == ["m"]
        with models.use("m") as chat:
            assert chat is own
