"""/v1/responses through the official client, every answer and event checked against its types."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Acting, Endless, Scripted, calling, served

from ladderlm.errors import ContextOverflow
from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import (
    Cancel,
    Chat,
    Conversation,
    Delta,
    Message,
    Reasoning,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)  # fmt: skip

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

LOOK = {"type": "function", "name": "look", "description": "looks", "parameters": {"type": "object"}, "strict": True}
ASK = {"type": "function", "name": "ask"}


class Narrow(EchoChat):
    """Reads two turns at most."""

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        cancel: Cancel | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[Delta]:
        if len(conversation.messages) > 2:
            raise ContextOverflow("too long")
        yield Delta(text=f"read {len(conversation.messages)}")
        yield Delta(finish_reason="stop", usage=Usage(1, 1))


class Stage:
    def __init__(self) -> None:
        self.calling, self.scripted, self.endless = calling(), Scripted(), Endless()
        self.chats: dict[str, Chat] = {
            "calling": self.calling, "scripted": self.scripted, "endless": self.endless, "echo": EchoChat(),
            "narrow": Narrow(),
        }  # fmt: skip
        self.url = ""

    @property
    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def post(self, path: str = "", **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/responses{path}", json=body, timeout=20)


@pytest.fixture
def stage(workspace: object) -> Iterator[Stage]:
    stage = Stage()
    with served(Models(tuple(stage.chats), opener=stage.chats.__getitem__)) as url:
        stage.url = url
        yield stage


def checked(body: Any) -> Any:
    """The answer, if it is what the client's types describe."""
    from openai.types.responses import Response

    return Response.model_validate(body)


def test_text(stage: Stage) -> None:
    found = stage.client.responses.create(model="echo", input="one two", metadata={"a": "b"}, max_output_tokens=9)
    checked(found.to_dict())
    assert (found.output_text, found.status, found.metadata) == ("one two", "completed", {"a": "b"})
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (2, 2, 4)
    assert found.id.startswith("resp_")
    assert found.completed_at >= found.created_at
    cut = stage.client.responses.create(model="echo", input="one two", max_output_tokens=1)
    assert (cut.status, cut.incomplete_details.reason, cut.output_text) == ("incomplete", "max_output_tokens", "one")
    assert cut.output[0].status == "incomplete"


def test_reasoning_and_calls(stage: Stage) -> None:
    found = stage.client.responses.create(
        model="calling", input=[{"role": "user", "content": "q"}], instructions="Be kind.", tools=[LOOK, ASK],
        tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    checked(found.to_dict())
    thought, message, look, ask = found.output
    assert thought.content[0].text == "hm"
    assert message.content[0].text == "Let me look."
    assert [t.token for t in message.content[0].logprobs] == ["Let me ", "look."]
    assert (look.call_id, look.name, look.arguments, look.status) == ("c1", "look", '{"q": "é"}', "completed")
    assert (ask.call_id, ask.arguments) == ("c2", "{}")
    assert found.usage.output_tokens_details.reasoning_tokens == 1
    conversation, sampling = stage.calling.asked[0]
    assert conversation.messages == (Message.of("system", "Be kind."), Message.of("user", "q"))
    assert [(t.name, t.strict) for t in conversation.tools] == [("look", True)]
    assert (sampling.tool_choice, sampling.parallel_tool_calls, sampling.logprobs) == ("required", False, 0)


def test_events(stage: Stage) -> None:
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter

    events = []
    body = {"model": "calling", "input": "q", "tools": [LOOK], "stream": True, "top_logprobs": 1}
    answer = stage.post(**body)
    assert answer.text.endswith("data: [DONE]\n\n")
    for block in answer.text.split("\n\n")[:-2]:
        name, data = block.split("\n", 1)
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        TypeAdapter(ResponseStreamEvent).validate_python(event)
        events.append(event)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    whole = checked(events[-1]["response"])
    assert [item["type"] for item in events[-1]["response"]["output"]] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == []
    assert {e["item_id"] for e in events if "item_id" in e} == {item.id for item in whole.output}
    assert stage.client.responses.retrieve(whole.id).output == whole.output


def test_the_clients_own_stream(stage: Stage) -> None:
    with stage.client.responses.stream(model="scripted", input="q") as stream:
        said = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == said == "Héllo world"


def test_state(stage: Stage) -> None:
    client = stage.client
    first = client.responses.create(model="calling", input="q", instructions="once", tools=[LOOK, ASK])
    results = [
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "said"}]},
    ]
    second = client.responses.create(model="calling", previous_response_id=first.id, input=results)
    assert second.previous_response_id == first.id
    assert stage.calling.asked[1][0].messages == (
        Message.of("user", "q"),
        Message("assistant", (
            Reasoning("hm"), Text("Let me look."), ToolCall("c1", "look", '{"q": "é"}'), ToolCall("c2", "ask", "{}"))),
        Message("tool", (ToolResult("c1", "found"), ToolResult("c2", "said"))),
    )  # fmt: skip
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.call_id for item in items] == ["c1", "c2"]
    assert len({item.id for item in items}) == 2
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="deleted"):
        client.responses.create(model="echo", previous_response_id=second.id, input="x")


def test_what_is_not_stored_is_gone(stage: Stage) -> None:
    found = stage.client.responses.create(model="echo", input="x", store=False)
    assert found.store is False
    with pytest.raises(openai.NotFoundError):
        stage.client.responses.retrieve(found.id)


def test_the_whole_input_sent_again(stage: Stage) -> None:
    """What came out goes in, as agents do that keep the state themselves."""
    first = stage.client.responses.create(model="calling", input="q", store=False)
    again = [{"role": "user", "content": "q"}, *(item.to_dict() for item in first.output),
             {"type": "function_call_output", "call_id": "c1", "output": "found"}]  # fmt: skip
    stage.client.responses.create(model="calling", input=again)
    roles = [m.role for m in stage.calling.asked[1][0].messages]
    assert roles == ["user", "assistant", "tool"]


def test_in_the_background(stage: Stage) -> None:
    client = stage.client
    found = client.responses.create(model="echo", input="a b", background=True)
    assert found.status in ("queued", "in_progress")
    until = time.monotonic() + 10
    while found.status in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.02)
        found = client.responses.retrieve(found.id)
    assert (found.status, found.output_text) == ("completed", "a b")
    running = client.responses.create(model="endless", input="x", background=True)
    assert client.responses.cancel(running.id).status == "cancelled"
    assert stage.endless.ended.wait(5)
    assert client.responses.retrieve(running.id).status == "cancelled"
    plain = client.responses.create(model="echo", input="x")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(plain.id)


def test_a_restart_ends_what_ran_in_the_background(stage: Stage) -> None:
    running = stage.client.responses.create(model="endless", input="x", background=True)
    with served(Models(("echo",), opener=stage.chats.__getitem__)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        assert client.responses.retrieve(running.id).status == "failed"
    assert stage.client.responses.retrieve(running.id).status == "in_progress"  # another server's are left alone
    stage.client.responses.cancel(running.id)


def test_truncation(stage: Stage) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")]
    answer = stage.post(model="narrow", input=turns)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = stage.post(model="narrow", input=turns, instructions="keep me", truncation="auto")
    assert answer.json()["output"][0]["content"][0]["text"] == "read 2"


def test_input_tokens(stage: Stage) -> None:
    found = stage.client.responses.input_tokens.count(model="echo", input="one two three", instructions="four")
    assert found.input_tokens == 4


def test_a_form(stage: Stage) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    found = stage.client.responses.create(model="scripted", input="q", text={"format": form})
    assert found.text.format.schema_ == {"type": "object"}
    assert stage.scripted.asked[0][1].response_format == {
        "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}},
    }  # fmt: skip


def test_a_failure_in_the_middle(stage: Stage) -> None:
    class Breaking(Acting):
        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Delta]:
            yield Delta(text="a")
            raise ContextOverflow("full")

    stage.chats["narrow"] = Breaking()
    with pytest.raises(openai.BadRequestError):
        stage.client.responses.create(model="narrow", input="x")
    events = list(stage.client.responses.create(model="narrow", input="x", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "full"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": [{"type": "unknown"}]}, "input[0]"),
        ({"input": "x", "previous_response_id": "resp_none"}, None),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "background": True, "stream": True}, "background"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}, "input"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_makes_no_sense(stage: Stage, body: dict[str, Any], field: str | None) -> None:
    answer = stage.post(model="echo", **body)
    assert answer.status_code in (400, 404)
    assert field is None or answer.json()["error"]["param"] == field


# --- Items by their ids, and what stands for many ------------------------------------------------------------------


def test_items_of_stored_responses_are_named_by_their_ids(stage: Stage) -> None:
    first = stage.client.responses.create(model="calling", input="Look at it.")
    call = next(item for item in first.output if item.type == "function_call")
    named: Any = [
        {"role": "user", "content": "Look at it."}, {"type": "item_reference", "id": call.id},
        {"type": "function_call_output", "call_id": call.call_id, "output": "a cat"},
    ]  # fmt: skip
    second = stage.client.responses.create(model="scripted", input=named)
    (conversation, _), *_ = stage.scripted.asked
    assert [m.role for m in conversation.messages] == ["user", "assistant", "tool"]
    assert conversation.messages[1].parts == (ToolCall(call.call_id, call.name, call.arguments),)
    kept = stage.client.responses.input_items.list(second.id, order="asc")
    assert [item.type for item in kept.data] == ["message", "function_call", "function_call_output"]
    stage.client.responses.create(model="scripted", input=[{"id": kept.data[0].id}, {"id": second.output[0].id},
                                                           {"role": "user", "content": "And?"}])  # fmt: skip
    assert [m.text for m in stage.scripted.asked[-1][0].messages] == ["Look at it.", "Héllo world", "And?"]
    for model, items in (("scripted", [{"type": "item_reference", "id": "msg_none"}]), ("scripted", [{"id": "x"}])):
        found = stage.post(model=model, input=items)
        assert (found.status_code, "no item" in found.text) == (404, True)


def test_a_deleted_response_gives_no_items(stage: Stage) -> None:
    first = stage.client.responses.create(model="scripted", input="Hello")
    stage.client.responses.delete(first.id)
    assert stage.post(model="scripted", input=[{"type": "item_reference", "id": first.output[0].id}]).status_code == 404


def test_a_conversation_is_compacted_and_gone_on_with(stage: Stage) -> None:
    first = stage.client.responses.create(model="scripted", input="My name is Ada.")
    made = stage.client.responses.compact(
        model="scripted", previous_response_id=first.id, input="What is it?", instructions="Be brief."
    )
    asked = stage.scripted.asked[-1][0].messages[0].text
    for word in ("User: My name is Ada.", "Assistant: Héllo world", "User: What is it?"):
        assert word in asked
    assert (made.object, made.usage.total_tokens) == ("response.compaction", 7)
    (item,) = made.output
    assert item.type == "compaction"
    told = [item.model_dump(exclude_none=True), {"role": "user", "content": "And?"}]
    second = stage.client.responses.create(model="scripted", input=told, instructions="Be brief.")
    messages = stage.scripted.asked[-1][0].messages
    assert [(m.role, m.text) for m in messages] == [
        ("system", "Be brief.\n\nWhat was said before, in short: Héllo world"), ("user", "And?"),
    ]  # fmt: skip
    third = stage.client.responses.create(model="scripted", input="So?", previous_response_id=second.id)
    assert third.output_text == "Héllo world"
    assert "in short" in stage.scripted.asked[-1][0].messages[0].text


@pytest.mark.parametrize("content", ["", "gAAAAABo", "é", "e30=", "bnVsbA==", "WyJzdW1tYXJ5Il0="])
def test_what_another_server_compacted_is_refused(stage: Stage, content: str) -> None:
    items = [{"type": "compaction", "encrypted_content": content}, {"role": "user", "content": "And?"}]
    found = stage.post(model="scripted", input=items)
    assert (found.status_code, "not a compaction of this server" in found.text) == (400, True)
    assert stage.post("/compact", model="scripted", input=[]).status_code == 400
