"""Tool calls over the wire, through the official client, and back through our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import Acting, calling, served

from ladderlm.serve.models import Models
from ladderlm.talk.remote import RemoteChat
from ladderlm.types import Completion, Conversation, Message, Reasoning, Sampling, Text, Tool, ToolCall, ToolResult

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

LOOK = {"type": "function", "function": {"name": "look", "description": "looks", "parameters": {"type": "object"}}}
ASK = {"type": "function", "function": {"name": "ask", "strict": True}}
HELLO = [{"role": "user", "content": "hello"}]
CALLS = [("c1", "look", '{"q": "é"}'), ("c2", "ask", "{}")]


@pytest.fixture(scope="module")
def live_stage() -> Iterator[tuple[str, Acting]]:
    chat = calling()
    with served(Models(("m",), opener=lambda ref: chat)) as url:
        yield url, chat


@pytest.fixture
def stage(live_stage: tuple[str, Acting]) -> tuple[Any, Acting]:
    live_stage[1].asked.clear()
    return openai.OpenAI(base_url=f"{live_stage[0]}/v1", api_key="x", max_retries=0, timeout=20), live_stage[1]


def test_whole(stage: tuple[Any, Acting]) -> None:
    client, chat = stage
    found = client.chat.completions.create(model="m", messages=HELLO, tools=[LOOK, ASK], logprobs=True, top_logprobs=1)
    (choice,) = found.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
    assert choice.message.reasoning_content == "hm"
    assert [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls] == CALLS
    assert len(choice.logprobs.content) == 7
    conversation, sampling = chat.asked[0]
    assert conversation.tools == (Tool("look", "looks", {"type": "object"}), Tool("ask", strict=True))
    assert (sampling.tool_choice, sampling.parallel_tool_calls, sampling.logprobs) == ("auto", True, 1)


def test_streamed(stage: tuple[Any, Acting]) -> None:
    client, _ = stage
    chunks = list(client.chat.completions.create(
        model="m", messages=HELLO, tools=[LOOK, ASK], stream=True, logprobs=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    fragments = [f for c in chunks if c.choices for f in c.choices[0].delta.tool_calls or ()]
    assert [(f.index, f.id, f.type, f.function.name, f.function.arguments) for f in fragments] == [
        (0, "c1", "function", "look", ""), (0, None, None, None, '{"q": '), (0, None, None, None, '"é"}'),
        (1, "c2", "function", "ask", "{}"),
    ]  # fmt: skip
    told = [t.token for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert "".join(told) == 'hmLet me look.<call>{"q": "é"}{}'
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert chunks[-1].usage.total_tokens == 10


def test_the_clients_own_helper_joins_the_stream(stage: tuple[Any, Acting]) -> None:
    client, _ = stage
    with client.chat.completions.stream(model="m", messages=HELLO, tools=[LOOK]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == CALLS


def test_calls_and_results_reach_the_model(stage: tuple[Any, Acting]) -> None:
    client, chat = stage
    first = client.chat.completions.create(model="m", messages=HELLO, tools=[LOOK, ASK]).choices[0].message
    results = [{"role": "tool", "tool_call_id": c.id, "content": f"r{c.id}"} for c in first.tool_calls]
    client.chat.completions.create(model="m", messages=[*HELLO, first, *results], tools=[LOOK, ASK])
    assert chat.asked[1][0].messages[1:] == (
        Message("assistant", (Reasoning("hm"), Text("Let me look."), *(ToolCall(*c) for c in CALLS))),
        Message("tool", (ToolResult("c1", "rc1"), ToolResult("c2", "rc2"))),
    )


@pytest.mark.parametrize(
    ("choice", "names", "required"),
    [
        ("auto", ["look", "ask"], "auto"),
        ("none", [], "auto"),
        ("required", ["look", "ask"], "required"),
        ({"type": "function", "function": {"name": "ask"}}, ["ask"], "required"),
        (
            {"type": "allowed_tools", "allowed_tools": {
                "mode": "auto", "tools": [{"type": "function", "function": {"name": "look"}}]}},
            ["look"], "auto",
        ),
    ],
)  # fmt: skip
def test_the_choice(stage: tuple[Any, Acting], choice: Any, names: list[str], required: str) -> None:
    client, chat = stage
    client.chat.completions.create(
        model="m", messages=HELLO, tools=[LOOK, ASK], tool_choice=choice, parallel_tool_calls=False
    )
    conversation, sampling = chat.asked[0]
    assert [tool.name for tool in conversation.tools] == names
    assert (sampling.tool_choice, sampling.parallel_tool_calls) == (required, False)


def test_our_own_client_hears_the_same(live_stage: tuple[str, Acting]) -> None:
    url, chat = live_stage
    chat.asked.clear()
    talk = Conversation((Message.of("user", "hello"),), (Tool("look", "", {"type": "object"}, strict=True),))
    remote = RemoteChat(url, "m")
    deltas = list(remote.stream(talk, Sampling(tool_choice="required", parallel_tool_calls=False, logprobs=0)))
    choice = Completion.fold(deltas).choices[0]
    assert [(c.id, c.name, c.arguments) for c in choice.tool_calls] == CALLS
    assert (choice.text, choice.reasoning, choice.finish_reason) == ("Let me look.", "hm", "tool_calls")
    assert len(choice.tokens) == 7
    assert sum(d.call is not None for d in deltas) == 4
    assert chat.asked[0][0] == talk
    assert (chat.asked[0][1].tool_choice, chat.asked[0][1].parallel_tool_calls) == ("required", False)


def test_the_schema_says_what_comes(live_stage: tuple[str, Acting]) -> None:
    paths = httpx.get(f"{live_stage[0]}/openapi.json", timeout=60).json()["paths"]
    answer = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert "ChatAnswer" in json.dumps(answer["application/json"])
    assert "text/event-stream" in answer
