"""/v1/messages through Anthropic's official client, every answer and event checked against its types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Acting, Scripted, calling, served

from ladderlm.errors import ContextOverflow
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Chat, Conversation, Delta, Message, Reasoning, Text, Tool, ToolCall, ToolResult

anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")

HELLO = [{"role": "user", "content": "hello"}]
LOOK = {"name": "look", "description": "looks", "input_schema": {"type": "object"}}
ASK = {"name": "ask", "input_schema": {}}


class Breaking(Acting):
    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Delta]:
        yield Delta(text="a")
        raise ContextOverflow("full")


class Stage:
    def __init__(self) -> None:
        self.calling, self.scripted = calling(), Scripted()
        self.chats: dict[str, Chat] = {
            "calling": self.calling, "scripted": self.scripted, "echo": EchoChat(), "breaking": Breaking(),
        }  # fmt: skip
        self.url = ""

    @property
    def client(self) -> Any:
        return anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def live() -> Iterator[Stage]:
    stage = Stage()
    with served(Models(tuple(stage.chats), opener=stage.chats.__getitem__)) as url:
        stage.url = url
        yield stage


@pytest.fixture
def stage(live: Stage) -> Stage:
    live.calling.asked.clear()
    live.scripted.asked.clear()
    return live


def test_text(stage: Stage) -> None:
    found = stage.client.messages.create(
        model="scripted", max_tokens=9, messages=HELLO, system=[{"type": "text", "text": "Be kind."}],
        stop_sequences=["x"], metadata={"user_id": "u"}, extra_body={"top_k": 3, "temperature": 0.5},
    )  # fmt: skip
    anthropic.types.Message.model_validate(found.to_dict())
    assert (found.content[0].text, found.stop_reason, found.stop_sequence) == ("Héllo world", "end_turn", None)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (3, 4)
    conversation, sampling = stage.scripted.asked[0]
    assert conversation == Conversation((Message.of("system", "Be kind."), Message.of("user", "hello")))
    assert (sampling.max_tokens, sampling.top_k, sampling.temperature, sampling.stop) == (9, 3, 0.5, ("x",))


def test_why_it_ended(stage: Stage) -> None:
    create, turn = stage.client.messages.create, [{"role": "user", "content": "one two three"}]
    cut = create(model="echo", max_tokens=1, messages=turn)
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "one")
    stopped = create(model="echo", max_tokens=9, messages=turn, stop_sequences=["zzz", " three"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == (
        "stop_sequence",
        " three",
        "one two",
    )


def test_thinking_and_tools(stage: Stage) -> None:
    found = stage.client.messages.create(
        model="calling", max_tokens=99, messages=HELLO, tools=[LOOK, ASK],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
    )  # fmt: skip
    anthropic.types.Message.model_validate(found.to_dict())
    thought, said, look, ask = found.content
    assert (thought.thinking, said.text, found.stop_reason) == ("hm", "Let me look.", "tool_use")
    assert (look.id, look.name, look.input) == ("c1", "look", {"q": "é"})
    assert (ask.id, ask.name, ask.input) == ("c2", "ask", {})
    conversation, sampling = stage.calling.asked[0]
    assert conversation.tools == (Tool("look", "looks", {"type": "object"}), Tool("ask"))
    assert (sampling.tool_choice, sampling.parallel_tool_calls) == ("required", False)
    stage.client.messages.create(
        model="calling", max_tokens=99, messages=HELLO, tools=[LOOK, ASK], tool_choice={"type": "tool", "name": "ask"}
    )
    assert [t.name for t in stage.calling.asked[1][0].tools] == ["ask"]


def test_results_go_back(stage: Stage) -> None:
    create = stage.client.messages.create
    first = create(model="calling", max_tokens=99, messages=HELLO, tools=[LOOK, ASK])
    results = [
        {"type": "tool_result", "tool_use_id": "c1", "content": "found"},
        {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "said"}], "is_error": True},
        {"type": "text", "text": "go on"},
    ]
    turns = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    create(model="calling", max_tokens=99, messages=turns, tools=[LOOK, ASK])
    assert stage.calling.asked[1][0].messages[1:] == (
        Message("assistant", (
            Reasoning("hm"), Text("Let me look."), ToolCall("c1", "look", '{"q": "é"}'), ToolCall("c2", "ask", "{}"))),
        Message("tool", (ToolResult("c1", "found"), ToolResult("c2", "said"))),
        Message.of("user", "go on"),
    )  # fmt: skip


def test_events(stage: Stage) -> None:
    body = {"model": "calling", "max_tokens": 99, "messages": HELLO, "tools": [LOOK, ASK], "stream": True}
    answer = httpx.post(f"{stage.url}/v1/messages", json=body)
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n", 1)
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [e["type"] for e in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "content_block_start",
        "content_block_delta", "content_block_delta", "content_block_stop", "content_block_start",
        "content_block_delta", "content_block_delta", "content_block_stop", "content_block_start",
        "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0, 1, 2, 3]


def test_the_clients_own_stream(stage: Stage) -> None:
    with stage.client.messages.stream(model="calling", max_tokens=99, messages=HELLO, tools=[LOOK, ASK]) as stream:
        said = "".join(stream.text_stream)
        found = stream.get_final_message()
    assert said == "Let me look."
    assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert found.content[2].input == {"q": "é"}
    assert (found.stop_reason, found.usage.output_tokens) == ("tool_use", 7)


def test_a_prefill_and_a_form(stage: Stage) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "I"}]
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    stage.client.messages.create(model="scripted", max_tokens=9, messages=turns, output_config=form)
    conversation, sampling = stage.scripted.asked[0]
    assert conversation.messages[-1] == Message.of("assistant", "I")
    assert sampling.response_format == {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


def test_counting(stage: Stage) -> None:
    found = stage.client.messages.count_tokens(model="echo", messages=HELLO, system="one two")
    assert found.input_tokens == 3


def test_errors_have_this_apis_form(stage: Stage) -> None:
    create = stage.client.messages.create
    with pytest.raises(anthropic.NotFoundError) as missing:
        create(model="none", max_tokens=9, messages=HELLO)
    assert missing.value.body["type"] == "error"
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        create(model="echo", max_tokens=0, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError) as wrong:
        create(model="echo", max_tokens=9, messages=HELLO, tool_choice={"type": "any"})
    assert wrong.value.body["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{stage.url}/v1/messages").json()["type"] == "error"
    with pytest.raises(anthropic.BadRequestError, match="full"):
        create(model="breaking", max_tokens=9, messages=HELLO)
    with pytest.raises(anthropic.APIError, match="full"):
        list(create(model="breaking", max_tokens=9, messages=HELLO, stream=True))
