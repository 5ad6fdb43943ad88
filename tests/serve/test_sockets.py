"""/v1/responses over a WebSocket, through the official client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Endless, Scripted, calling, served

from ladderlm.serve import accounts
from ladderlm.serve.models import Models
from ladderlm.serve.routes import sockets
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Chat

openai = pytest.importorskip("openai")
websockets = pytest.importorskip("websockets.sync.client")
pytest.importorskip("uvicorn")
from websockets.exceptions import ConnectionClosedOK, InvalidStatus  # noqa: E402

LOOK = {"type": "function", "name": "look", "description": "looks", "parameters": {"type": "object"}, "strict": True}


class Stage:
    def __init__(self) -> None:
        self.scripted, self.endless = Scripted(), Endless()
        self.chats: dict[str, Chat] = {
            "echo": EchoChat(), "calling": calling(), "scripted": self.scripted, "endless": self.endless,
        }  # fmt: skip


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def url(stage: Stage) -> Iterator[str]:
    with served(Models(tuple(stage.chats), opener=lambda ref: stage.chats[ref])) as url:
        yield url


@contextlib.contextmanager
def connected(url: str, key: str = "none") -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key).responses.connect() as connection:
        yield connection


def events(connection: Any) -> list[Any]:
    """Those of one response, or the error."""
    found = []
    for event in connection:
        found.append(event)
        if event.type in ("response.completed", "response.failed", "response.incomplete", "error"):
            return found
    raise AssertionError("the connection ended")


def raw(url: str, **headers: str) -> Any:
    return websockets.connect(f"ws{url.removeprefix('http')}/v1/responses", additional_headers=headers)


def test_events_are_those_of_a_stream(url: str) -> None:
    with connected(url) as connection:
        connection.response.create(model="calling", input="look", tools=[LOOK])
        told = events(connection)
    streamed = list(openai.OpenAI(base_url=f"{url}/v1", api_key="none").responses.create(
        model="calling", input="look", tools=[LOOK], stream=True
    ))  # fmt: skip
    assert [e.type for e in told] == [e.type for e in streamed]
    assert told[-1].response.output[-1].arguments == streamed[-1].response.output[-1].arguments


def test_responses_one_after_another(url: str, stage: Stage) -> None:
    with connected(url) as connection:
        connection.response.create(model="scripted", input="one")
        first = events(connection)[-1].response
        connection.response.create(model="scripted", input="two", previous_response_id=first.id)
        second = events(connection)[-1].response
    assert second.previous_response_id == first.id
    said = [m.text for m in stage.scripted.asked[-1][0].messages]
    assert said == ["one", first.output_text, "two"]
    # stored, as those over HTTP are
    assert httpx.get(f"{url}/v1/responses/{second.id}").json()["previous_response_id"] == first.id


def test_what_is_not_stored_is_remembered_on_its_connection_alone(url: str, stage: Stage) -> None:
    with connected(url) as connection:
        connection.response.create(model="scripted", input="one", store=False)
        first = events(connection)[-1].response
        connection.response.create(model="scripted", input="two", previous_response_id=first.id, store=False)
        second = events(connection)[-1].response
        connection.response.create(model="scripted", input="three", previous_response_id=second.id, store=False)
        events(connection)
        said = [m.text for m in stage.scripted.asked[-1][0].messages]
        assert said == ["one", first.output_text, "two", second.output_text, "three"]
        connection.response.create(model="scripted", input="four", previous_response_id=first.id)
        assert events(connection)[-1].error.code == "previous_response_not_found"
    with connected(url) as connection:
        connection.response.create(model="scripted", input="five", previous_response_id=second.id)
        (error,) = events(connection)
        assert (error.type, error.status, error.error.code) == ("error", 404, "previous_response_not_found")
    assert httpx.get(f"{url}/v1/responses/{first.id}").status_code == 404


def test_lanes_answer_beside_each_other(url: str, stage: Stage) -> None:
    with connected(url) as connection:
        connection.response.create(model="endless", input="x", stream_id="long")
        first = next(iter(connection))
        connection.response.create(model="scripted", input="one", stream_id="short", store=False)
        told = []
        for event in connection:
            if event.stream_id == "short":
                told.append(event)
                if event.type == "response.completed":
                    break
        assert first.stream_id == "long"
        assert not stage.endless.ended.is_set()
        id = told[-1].response.id  # a new lane may go on from another's
        connection.response.create(model="scripted", input="two", stream_id="fork", previous_response_id=id)
        while (event := next(iter(connection))).stream_id != "fork" or event.type != "response.completed":
            assert event.type != "error", event
    assert stage.endless.ended.wait(5)
    assert [m.text for m in stage.scripted.asked[-1][0].messages][::2] == ["one", "two"]


def test_no_more_lanes_than_there_may_be(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LANES", 1)
    with connected(url) as connection:
        for lane in ("a", "b"):
            connection.response.create(model="echo", input="x", stream_id=lane)
            last = events(connection)[-1]
            assert (last.type == "error") == (lane == "b")


def test_reading_ahead_says_nothing(url: str, stage: Stage) -> None:
    with connected(url) as connection:
        connection.response.create(model="scripted", input="one", generate=False)
        told = events(connection)
        assert [e.type for e in told] == ["response.created", "response.in_progress", "response.completed"]
        assert told[-1].response.output == []
        assert stage.scripted.asked[-1][1].max_tokens == 0
        connection.response.create(model="scripted", input=[], instructions="be brief", generate=False)
        assert events(connection)[-1].type == "response.completed"
        connection.response.create(model="scripted", input="two", previous_response_id=told[-1].response.id)
        events(connection)
    assert [m.text for m in stage.scripted.asked[-1][0].messages] == ["one", "two"]
    assert len(stage.scripted.asked) == 2


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("{", None),
        ("[]", None),
        ("[" * 100_000, None),
        (b"\x00", None),
        ({"type": "response.steer"}, "type"),
        ({"model": "echo", "input": "x"}, "type"),
        ({"type": "response.create", "model": "echo", "input": "x", "background": True}, "background"),
        ({"type": "response.create", "model": "nobody", "input": "x"}, "model"),
        ({"type": "response.create", "model": "echo", "input": 7}, "input"),
    ],
)
def test_what_is_wrong_is_told_and_the_connection_goes_on(url: str, message: Any, param: str | None) -> None:
    with raw(url) as socket:
        socket.send(json.dumps(message) if isinstance(message, dict) else message)
        told = json.loads(socket.recv(10))
        assert told["type"] == "error"
        assert told["status"] in (400, 404)
        assert told["error"]["message"]
        assert param is None or told["error"]["param"] == param
        socket.send(json.dumps({"type": "response.create", "model": "echo", "input": "still there"}))
        while (event := json.loads(socket.recv(10)))["type"] != "response.completed":
            assert event["type"] != "error", event
        assert "still there" in event["response"]["output"][0]["content"][0]["text"]


def test_who_leaves_ends_the_answer(url: str, stage: Stage) -> None:
    with raw(url) as socket:
        socket.send(json.dumps({"type": "response.create", "model": "endless", "input": "x"}))
        while json.loads(socket.recv(10))["type"] != "response.output_text.delta":
            pass
        assert not stage.endless.ended.is_set()
    assert stage.endless.ended.wait(5)


def test_an_answer_that_breaks_off_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr("ladderlm.serve.server._event", broken)
    with connected(url) as connection:
        connection.response.create(model="scripted", input="x")
        (error,) = events(connection)
        assert (error.type, error.status) == ("error", 500)
        assert "foresaw" not in error.error.message


def test_a_key_is_asked_for_and_may_be_taken_back() -> None:
    one, text = accounts.create_key("one", scopes=("chat",))
    _, other = accounts.create_key("two", scopes=("embed",))
    with served(Models(("echo",), opener=lambda ref: EchoChat())) as url:
        for key, status in ((None, 401), ("sk-wrong", 401), (other, 403)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            with pytest.raises(InvalidStatus, match=str(status)):
                raw(url, **headers).close()
        counted = httpx.get(f"{url}/metrics").text
        assert 'status="401"} 2.0' in counted
        assert 'status="403"} 1.0' in counted
        with connected(url, text) as connection:
            connection.response.create(model="echo", input="x")
            assert events(connection)[-1].type == "response.completed"
            accounts.revoke_key(one.id)
            connection.response.create(model="echo", input="x")
            (error,) = events(connection)
            assert error.status == 401


def test_pages_of_other_sites_are_not_connected(url: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        raw(url, Origin="https://elsewhere.example").close()


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/nothing"])
def test_elsewhere_nothing_is_connected(url: str, path: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        websockets.connect(f"ws{url.removeprefix('http')}{path}").close()


def test_a_connection_lives_its_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LIFE", 0.2)
    with raw(url) as socket:
        assert json.loads(socket.recv(10))["error"]["code"] == "websocket_connection_limit_reached"
        with pytest.raises(ConnectionClosedOK):
            socket.recv(10)
