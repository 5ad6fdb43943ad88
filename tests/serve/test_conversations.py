"""/v1/conversations through the official client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Endless, Scripted, calling, served

from ladderlm import store
from ladderlm.serve import accounts, personal
from ladderlm.serve.models import Models
from ladderlm.types import Chat

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

LOOK = {"type": "function", "name": "look", "description": "looks", "parameters": {"type": "object"}, "strict": True}


class Stage:
    def __init__(self) -> None:
        self.scripted = Scripted()
        self.chats: dict[str, Chat] = {"scripted": self.scripted, "calling": calling(), "endless": Endless()}

    def read(self) -> list[str]:
        """What the model was last given."""
        return [m.text for m in self.scripted.asked[-1][0].messages]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def url(stage: Stage) -> Iterator[str]:
    with served(Models(tuple(stage.chats), opener=lambda ref: stage.chats[ref])) as url:
        yield url


@pytest.fixture
def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def said(client: Any, id: str) -> list[str]:
    return [i.content[0].text for i in client.conversations.items.list(id, order="asc") if i.type == "message"]


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_added_and_read_again(client: Any, stage: Stage, stream: bool) -> None:
    made = client.conversations.create(
        items=[{"type": "message", "role": "system", "content": "be brief"}], metadata={"topic": "x"}
    )
    texts = []
    for text in ("one", "two"):
        answer = client.responses.create(model="scripted", input=text, conversation=made.id, stream=stream)
        if stream:
            answer = list(answer)[-1].response
        assert answer.conversation.id == made.id
        texts += [text, answer.output_text]
    assert stage.read() == ["be brief", *texts[:3]]
    assert said(client, made.id) == ["be brief", *texts]
    assert client.conversations.retrieve(made.id).metadata == {"topic": "x"}


def test_calls_and_what_they_gave(client: Any) -> None:
    made = client.conversations.create()
    answer = client.responses.create(model="calling", input="look", conversation={"id": made.id}, tools=[LOOK])
    call = next(i for i in answer.output if i.type == "function_call")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "seen"}
    client.responses.create(model="scripted", input=[output], conversation=made.id)
    kinds = [i.type for i in client.conversations.items.list(made.id, order="asc")]
    assert kinds[0] == "message"
    assert kinds[-2:] == ["function_call_output", "message"]
    assert "function_call" in kinds


def test_items_are_listed_found_added_and_removed(client: Any, stage: Stage) -> None:
    made = client.conversations.create()
    assert client.conversations.items.list(made.id).data == []
    client.conversations.items.create(
        made.id, items=[{"type": "message", "role": "user", "content": str(n)} for n in range(5)]
    )
    page = client.conversations.items.list(made.id, limit=2)
    assert [i.content[0].text for i in page.data] == ["4", "3"]
    assert [i.content[0].text for i in page] == ["4", "3", "2", "1", "0"]  # the client asks for the pages that follow
    second = page.data[1]
    assert client.conversations.items.retrieve(second.id, conversation_id=made.id) == second
    assert client.conversations.items.delete(second.id, conversation_id=made.id).id == made.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(second.id, conversation_id=made.id)
    assert said(client, made.id) == ["0", "1", "2", "4"]
    assert client.conversations.update(made.id, metadata={"a": "b"}).metadata == {"a": "b"}


def test_deleted_and_unknown_ones(client: Any) -> None:
    made = client.conversations.create()
    first = client.responses.create(model="scripted", input="x", conversation=made.id)
    with pytest.raises(openai.BadRequestError, match=made.id):
        client.responses.create(model="scripted", input="y", previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="one of the two"):
        client.responses.create(model="scripted", input="y", previous_response_id=first.id, conversation=made.id)
    assert client.conversations.delete(made.id).deleted
    for call in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.update(made.id, metadata={}),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.items.create(made.id, items=[]),
        lambda: client.responses.create(model="scripted", input="y", conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError, match="conversation"):
            call()
    assert client.responses.retrieve(first.id).id == first.id


def test_what_fails_adds_nothing_and_a_background_answer_once(client: Any, stage: Stage) -> None:
    made = client.conversations.create()
    with client.responses.create(model="endless", input="x", conversation=made.id, stream=True) as stream:
        next(iter(stream))
    answer = client.responses.create(model="scripted", input="one", conversation=made.id, background=True)
    until = time.monotonic() + 10
    while client.responses.retrieve(answer.id).status != "completed" and time.monotonic() < until:
        time.sleep(0.02)
    assert said(client, made.id) == ["one", client.responses.retrieve(answer.id).output_text]


def test_images_come_with_a_response(url: str) -> None:
    item = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    told = httpx.post(f"{url}/v1/conversations", json={"items": [item]})
    assert told.status_code == 400
    assert told.json()["error"]["param"] == "items[0].content[0].image_url"


def test_they_are_their_owner_s(stage: Stage) -> None:
    keys = []
    for name in ("ann", "bob"):
        user = accounts.create_user(name, "user")
        keys.append((user.id, accounts.create_key("k", user=user.id)[1]))
    with served(Models(tuple(stage.chats), opener=lambda ref: stage.chats[ref])) as url:
        ann, bob = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for _, key in keys)
        made = ann.conversations.create(items=[{"type": "message", "role": "user", "content": "secret words"}])
        for call in (
            lambda: bob.conversations.retrieve(made.id),
            lambda: bob.conversations.items.list(made.id),
            lambda: bob.responses.create(model="scripted", input="y", conversation=made.id),
            lambda: bob.conversations.delete(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
    rows = list(personal.export(keys[0][0]))
    assert any(r["table"] == "conversation_items" and "secret words" in r["body"] for r in rows)
    gone = personal.erase(keys[0][0])
    assert (gone["response_conversations"], gone["conversation_items"]) == (1, 1)
    assert b"secret words" not in (store.home() / "ladderlm.sqlite").read_bytes()
