"""Images through the server to a model that sees: in every API's form, what is refused, and what is kept of them."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Scripted, served
from openai_server import Server, answer
from pictures import GIF, JPEG, data_url, png

from ladderlm import store
from ladderlm.serve import images as serving
from ladderlm.serve.door import POLICY
from ladderlm.serve.images import Images
from ladderlm.serve.log import RequestLog
from ladderlm.serve.models import Models
from ladderlm.serve.upstream import Upstream
from ladderlm.talk import images
from ladderlm.talk.images import Blobs

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")

PNG = png()
BYTES = base64.b64encode(PNG).decode()
URL = data_url(PNG)
SAID = "two steps"


@dataclass
class Front:
    """A server of ours before one that sees, which remembers what it was asked."""

    url: str
    back: Server
    own: Scripted

    @property
    def openai(self) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def chat(self, *content: Any, model: str = "lab/first", role: str = "user") -> httpx.Response:
        body = {"model": model, "messages": [{"role": role, "content": list(content)}]}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)


@contextlib.contextmanager
def fronted(**settings: Any) -> Iterator[Front]:
    own = Scripted()
    with Server(answer("two ", "steps")) as back:
        upstream = Upstream(back.url, "lab/")
        upstream.ask()
        with served(Models(("own",), upstreams=[upstream], opener=lambda ref: own), **settings) as url:
            yield Front(url, back, own)


@pytest.fixture
def front() -> Iterator[Front]:
    with fronted() as found:
        yield found


@pytest.fixture(autouse=True)
def blobs(monkeypatch: pytest.MonkeyPatch) -> Blobs:
    """No test sees the images of another."""
    made = Blobs()
    for module in (images, serving):
        monkeypatch.setattr(module, "HELD", made)
    return made


def part(url: str = URL, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


TEXT = {"type": "text", "text": "What is this?"}


# --- In every form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions(front: Front, stream: bool) -> None:
    jpeg = data_url(JPEG, "image/jpeg")
    messages: Any = [{"role": "user", "content": [TEXT, part(), part(jpeg, detail="high")]}]
    found = front.openai.chat.completions.create(model="lab/first", messages=messages, stream=stream)
    said = "".join(c.choices[0].delta.content or "" for c in found if c.choices) if stream else None
    assert (said or found.choices[0].message.content) == SAID
    (body,) = front.back.bodies
    assert body["messages"] == [{"role": "user", "content": [TEXT, part(), part(jpeg, detail="high")]}]


@pytest.mark.parametrize("stream", [False, True])
def test_responses(front: Front, stream: bool) -> None:
    content = [{"type": "input_text", "text": "What is this?"},
               {"type": "input_image", "image_url": URL, "detail": "low"}]  # fmt: skip
    asked: Any = [{"role": "user", "content": content}]
    found = front.openai.responses.create(model="lab/first", input=asked, stream=stream)
    last = list(found)[-1].response if stream else found
    assert last.output_text == SAID
    assert front.back.bodies[0]["messages"][0]["content"] == [TEXT, part(detail="low")]


@pytest.mark.parametrize("stream", [False, True])
def test_messages(front: Front, stream: bool) -> None:
    client = anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0, timeout=20)
    source = {"type": "base64", "media_type": "image/png", "data": BYTES}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    asked = {"model": "lab/first", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    if stream:
        with client.messages.stream(**asked) as streamed:
            assert "".join(streamed.text_stream) == SAID
    else:
        assert client.messages.create(**asked).content[0].text == SAID
    assert front.back.bodies[0]["messages"][0]["content"] == [part(), TEXT]


SHOWN = [{"type": "text", "text": "Shown by tool call c1:"}, part(), TEXT]


def test_what_tools_show_stands_in_the_turn_after_them(front: Front) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [{"type": "text", "text": "a screenshot"}, part()]
    messages: Any = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": "c1", "content": said},
                     {"role": "user", "content": TEXT["text"]}]  # fmt: skip
    front.openai.chat.completions.create(model="lab/first", messages=messages)
    items: Any = [{"role": "user", "content": "Look."},
                  {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c1", "output": [
                      {"type": "input_text", "text": "a screenshot"}, {"type": "input_image", "image_url": URL}]},
                  {"role": "user", "content": TEXT["text"]}]  # fmt: skip
    first = front.openai.responses.create(model="lab/first", input=items)
    source = {"type": "base64", "media_type": "image/png", "data": BYTES}
    turns: Any = [{"role": "user", "content": "Look."},
                  {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}]},
                  {"role": "user", "content": [
                      {"type": "tool_result", "tool_use_id": "c1", "content": [
                          {"type": "text", "text": "a screenshot"}, {"type": "image", "source": source}]},
                      TEXT]}]  # fmt: skip
    client = anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0, timeout=20)
    client.messages.create(model="lab/first", max_tokens=9, messages=turns)
    front.openai.responses.create(model="lab/first", input="Again?", previous_response_id=first.id)
    for body in front.back.bodies:
        tool, user = body["messages"][2:4]
        assert tool == {"role": "tool", "tool_call_id": "c1", "content": "a screenshot"}
        assert user == {"role": "user", "content": SHOWN}
    assert len(front.back.bodies) == 4


def test_what_several_tools_show_follows_all_of_them_and_needs_no_user(front: Front) -> None:
    calls = [{"type": "function_call", "call_id": c, "name": "look", "arguments": "{}"} for c in ("c1", "c2", "c3")]
    shows: Any = {"type": "input_image", "image_url": URL}
    outputs = [{"type": "function_call_output", "call_id": c, "output": o}
               for c, o in (("c1", [shows]), ("c2", "nothing"), ("c3", [shows, shows]))]  # fmt: skip
    asked: Any = [{"role": "user", "content": "Look."}, *calls, *outputs]
    front.openai.responses.create(model="lab/first", input=asked)
    messages = front.back.bodies[0]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "tool", "user"]
    kinds = [p.get("text", p["type"]) for p in messages[-1]["content"]]
    assert kinds == ["Shown by tool call c1:", "image_url", "Shown by tool call c3:", "image_url", "image_url"]


def test_models_say_whether_they_may_be_shown_images(front: Front) -> None:
    told = {m["id"]: m["images"] for m in httpx.get(f"{front.url}/v1/models").json()["data"]}
    assert told == {"own": False, "lab/first": True, "lab/second": True}


# --- Who reads text only ------------------------------------------------------------------------------------------


def test_a_local_model_is_never_asked(front: Front) -> None:
    asked = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]}
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("chat/completions", {"messages": [{"role": "user", "content": [TEXT, part()]}]}, "[1].image_url.url"),
        ("responses", asked, "input[0]"),
        ("responses/input_tokens", asked, "input[0].content[0].image_url"),
        ("responses", {"input": [{"type": "function_call_output", "call_id": "c",
                                  "output": [{"type": "input_image", "image_url": URL}]}]}, "input[0].output[0]"),
        ("chat/completions", {"messages": [{"role": "tool", "tool_call_id": "c", "content": [part()]}]}, "[0].image_"),
        ("messages", {"max_tokens": 3, "messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}]}]}, "source.url"),
    ]  # fmt: skip
    for path, body, where in bad:
        found = httpx.post(f"{front.url}/v1/{path}", json={"model": "own", **body}, timeout=20)
        error = found.json()["error"]
        assert found.status_code == 400, path
        assert "this model reads text only" in error["message"]
        assert where in error["message"]
        assert "param" not in error or where in error["param"]
        assert URL not in found.text
    assert front.own.asked == []
    found = httpx.post(
        f"{front.url}/tokenize", json={"model": "own", "messages": [{"role": "user", "content": [part()]}]}
    )
    assert found.status_code == 400


# --- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (data_url(PNG, "image/jpeg"), "said to be image/jpeg, it is image/png"),
        (data_url(b"<svg/>", "image/svg+xml"), "not an image as a data: URL"),
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("file:///etc/passwd", "not an image as a data: URL"),
        ("ftp://example.org/x.png", "not an image as a data: URL"),
        ("sha256:" + "0" * 64, "not an image as a data: URL"),
        ("https://example.org/x.png", "this server fetches no images"),
        ("HTTP://169.254.169.254/latest/meta-data", "this server fetches no images"),
        ("", "not an image as a data: URL"),
    ],
)
def test_hostile_urls(front: Front, url: str, why: str) -> None:
    found = front.chat(TEXT, part(), part(url))
    assert found.status_code == 400
    assert why in found.json()["error"]["message"]
    assert found.json()["error"]["param"] == "messages[0].content[2].image_url.url"
    assert front.back.bodies == []


def test_shapes_and_places(front: Front) -> None:
    bad: list[Any] = [{"type": "image_url"}, {"type": "image_url", "image_url": URL}, part(detail="ultra"),
                      {"type": "image_url", "image_url": {}}, {"type": "input_audio", "input_audio": {}}]  # fmt: skip
    for content in bad:
        found = front.chat(content)
        assert (found.status_code, found.json()["error"]["param"].startswith("messages[0].content[0]")) == (400, True)
    for role in ("system", "assistant"):
        assert front.chat(part(), role=role).status_code == 400
    body: Any = {
        "model": "lab/first",
        "input": [{"role": "system", "content": [{"type": "input_image", "image_url": URL}]}],
    }
    found = httpx.post(f"{front.url}/v1/responses", json=body)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "input[0].content[0]")
    body["input"][0] = {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}
    assert httpx.post(f"{front.url}/v1/responses", json=body).status_code == 400
    for source in ({"type": "file", "file_id": "f"}, {"type": "base64", "media_type": "image/png"},
                   {"type": "base64", "media_type": "image/bmp", "data": BYTES},
                   {"type": "base64", "media_type": "image/png", "data": "!"}):  # fmt: skip
        content = {"type": "image", "source": source}
        body = {"model": "lab/first", "max_tokens": 3, "messages": [{"role": "user", "content": [content]}]}
        found = httpx.post(f"{front.url}/v1/messages", json=body)
        assert found.status_code == 400
        assert "messages[0].content[0].source" in found.json()["error"]["message"]
    assert front.back.bodies == []


def test_limits(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    assert front.chat(*[part()] * serving.MOST).status_code == 200
    found = front.chat(*[part()] * (serving.MOST + 1))
    assert (found.status_code, "more than 64 images" in found.text) == (400, True)
    monkeypatch.setattr(serving, "LARGEST", 3 * len(PNG))
    assert front.chat(*[part()] * 3).status_code == 200
    assert "in all" in front.chat(*[part()] * 4).json()["error"]["message"]  # of the same image too
    monkeypatch.setattr(images, "LARGEST", 10)
    assert "scale it down" in front.chat(part()).json()["error"]["message"]


def test_larger_bodies_where_images_may_be() -> None:
    text = {"type": "text", "text": "x" * 3000}
    with fronted(body_limit=2000, image_limit=8000) as front:
        assert front.chat(text).status_code == 200
        assert front.chat(text, text, text).status_code == 413
        assert httpx.post(f"{front.url}/v1/completions", json={"prompt": "x" * 3000}).status_code == 413


def test_images_in_use_fill_the_memory_and_others_wait(front: Front, blobs: Blobs) -> None:
    blobs.limit = len(PNG) + 10
    other = png(3, 3)
    held = blobs.put(PNG)  # by a request that is being answered
    found = front.chat(part(data_url(other)))
    assert (found.status_code, "retry-after" in found.headers) == (429, True)
    assert front.chat(part()).status_code == 200
    del held
    assert front.chat(part(data_url(other))).status_code == 200


# --- What is kept -------------------------------------------------------------------------------------------------


def everything_written(home: Path) -> str:
    """All that the workspace holds, as text."""
    with contextlib.closing(store.database()) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return "".join(p.read_bytes().decode("latin-1") for p in home.rglob("*") if p.is_file())


def test_an_earlier_response_is_gone_on_from_while_its_image_is_in_memory(
    front: Front, workspace: Path, blobs: Blobs
) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": URL},
                                               {"type": "input_text", "text": "What is this?"}]}]  # fmt: skip
    first = front.openai.responses.create(model="lab/first", input=asked)
    second = front.openai.responses.create(model="lab/first", input="And now?", previous_response_id=first.id)
    assert second.output_text == SAID
    assert front.back.bodies[1]["messages"] == [
        {"role": "user", "content": [part(), TEXT]},
        {"role": "assistant", "content": SAID},
        {"role": "user", "content": "And now?"},
    ]
    kept = front.openai.responses.input_items.list(first.id).data[0].content[0]
    assert (kept.type, kept.image_url, kept.media_type) == ("input_image", None, "image/png")
    assert kept.sha256 == blobs.put(PNG).sha256
    body = {"model": "own", "input": "?", "previous_response_id": first.id}
    found = httpx.post(f"{front.url}/v1/responses", json=body)
    assert (found.status_code, "reads text only" in found.text) == (400, True)
    blobs.limit = 1
    with contextlib.suppress(Exception):
        blobs.put(b"xx")  # pushes out what nobody holds
    found = httpx.post(f"{front.url}/v1/responses", json={**body, "model": "lab/first"})
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "previous_response_id"
    assert "no longer in memory" in found.json()["error"]["message"]
    assert BYTES[:24] not in everything_written(workspace)


def test_in_the_background(front: Front) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]
    made = front.openai.responses.create(model="lab/first", input=asked, background=True)
    until = time.monotonic() + 10
    while made.status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.05)
        made = front.openai.responses.retrieve(made.id)
    assert (made.status, made.output_text) == ("completed", SAID)
    assert front.back.bodies[0]["messages"][0]["content"] == [part()]


def test_a_request_lets_its_images_go(front: Front, blobs: Blobs) -> None:
    assert front.chat(part(), part(data_url(GIF, "image/gif"))).status_code == 200
    assert blobs.bytes == len(PNG) + len(GIF)
    blobs._latest.clear()
    gc.collect()
    assert blobs.bytes == 0


@pytest.mark.parametrize("content", [False, True])
def test_the_request_log_holds_no_bytes(workspace: Path, content: bool) -> None:
    with fronted(log=RequestLog(content=content)) as front:
        big = png(700, 700, (1, 2, 3)) + base64.b16encode(bytes(range(256)) * 4000)  # beyond what is looked at
        assert front.chat(
            {"type": "text", "text": "before"}, part(data_url(big)), {"type": "text", "text": "after"}
        ).is_success
        source = {"type": "base64", "media_type": "image/png", "data": BYTES}
        body = {"model": "lab/first", "max_tokens": 3,
                "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}  # fmt: skip
        assert httpx.post(f"{front.url}/v1/messages", json=body).is_success
        torn = json.dumps(body)[:-1].encode()
        assert httpx.post(
            f"{front.url}/v1/messages", content=torn, headers={"content-type": "application/json"}
        ).is_client_error
    with store.reading() as db:
        rows = [row[0] for row in db.execute("SELECT asked FROM requests ORDER BY id")]
    assert BYTES[:24] not in everything_written(workspace)
    assert base64.b64encode(big).decode()[200:240] not in everything_written(workspace)
    if content:
        said = json.loads(rows[0])["messages"][0]["content"]
        assert [p.get("text") for p in said] == ["before", None, "after"]
        assert said[1]["image_url"]["url"].startswith("data:image/png;base64, (")
        assert json.loads(rows[1])["messages"][0]["content"][0]["source"]["data"] == f"({len(BYTES)} characters)"
        assert rows[2].endswith('"source": {"type": "')
    else:
        assert rows == [None] * 3


def test_what_is_not_fetched_is_not_fetched_for_another_server_either(front: Front) -> None:
    assert Images().fetches is False
    assert front.chat(part("http://127.0.0.1:1/x.png")).status_code == 400
    assert front.back.bodies == []


def test_the_page_may_show_images_of_its_own_and_of_chats_and_no_others(front: Front) -> None:
    policy = dict(p.strip().split(" ", 1) for p in POLICY.split(";"))
    assert httpx.get(f"{front.url}/health").headers["content-security-policy"] == POLICY
    assert (policy["default-src"], policy["img-src"], policy["script-src"]) == ("'none'", "'self' data:", "'self'")
