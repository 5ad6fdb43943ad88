"""The routes, through the official client."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import httpx
import pytest
from live import WORDS, Endless, Scripted, served

from ladderlm.serve.models import Models
from ladderlm.talk.echo import EchoChat
from ladderlm.types import Chat, Conversation, Message

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

ANSWER = "".join(WORDS)
HELLO = [{"role": "user", "content": "hello"}]


class Stage:
    """One server with three models, and the official client for it."""

    def __init__(self) -> None:
        self.scripted, self.endless = Scripted(), Endless()
        chats: dict[str, Chat] = {"scripted": self.scripted, "endless": self.endless, "echo": EchoChat()}
        self.models = Models(("scripted", "endless", "echo"), opener=chats.__getitem__)
        self.url = ""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def _stage() -> Iterator[Stage]:
    stage = Stage()
    with served(stage.models, body_limit=20_000, image_limit=20_000) as url:
        stage.url = url
        yield stage


@pytest.fixture
def stage(_stage: Stage) -> Stage:
    _stage.scripted.asked.clear()
    return _stage


def test_models_and_health(stage: Stage) -> None:
    assert [m.id for m in stage.client.models.list()] == ["scripted", "endless", "echo"]
    assert stage.client.models.retrieve("echo").id == "echo"
    answer = httpx.get(f"{stage.url}/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"


def test_chat(stage: Stage) -> None:
    found = stage.client.chat.completions.create(model="scripted", messages=HELLO, n=2, logprobs=True, top_logprobs=2)
    assert [c.index for c in found.choices] == [0, 1]
    for choice in found.choices:
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
        tokens = choice.logprobs.content
        assert [t.token for t in tokens] == list(WORDS)
        assert tokens[0].bytes == list("Hé".encode())
        assert [(t.token, t.logprob) for t in tokens[1].top_logprobs] == [("llo", -0.5), (" other", -3.0)]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 8, 11)
    assert found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-")


def test_chat_stream(stage: Stage) -> None:
    stream = stage.client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        stream=True,
        logprobs=True,
        top_logprobs=1,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert len({c.id for c in chunks}) == 1
    first = chunks[0].choices[0]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ANSWER
    assert [t.token for c in chunks[:-1] if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == list(WORDS)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].choices[0].delta.content is None
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 7)
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_ends_with_done_and_is_not_cached(stage: Stage) -> None:
    answer = httpx.post(f"{stage.url}/v1/chat/completions", json={"model": "echo", "messages": HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_prefill_reaches_the_model_as_the_last_turn(stage: Stage) -> None:
    stage.client.chat.completions.create(model="scripted", messages=[*HELLO, {"role": "assistant", "content": "I"}])
    conversation = stage.scripted.asked[0][0]
    assert conversation == Conversation((Message.of("user", "hello"), Message.of("assistant", "I")))


def test_the_models_own_drawing_holds_unless_the_request_says_how(stage: Stage) -> None:
    stage.client.chat.completions.create(model="scripted", messages=HELLO, seed=3)
    stage.client.chat.completions.create(model="scripted", messages=HELLO, top_p=0.5)
    silent, told = (sampling for _, sampling in stage.scripted.asked)
    assert (silent.temperature, silent.top_k, silent.seed) == (0.3, 7, 3)
    assert (told.temperature, told.top_k, told.top_p) == (1.0, 0, 0.5)


def test_without_a_model_the_default_answers(stage: Stage) -> None:
    answer = httpx.post(f"{stage.url}/v1/chat/completions", json={"messages": HELLO})
    assert answer.json()["model"] == "scripted"


def test_completions_of_several_prompts(stage: Stage) -> None:
    found = stage.client.completions.create(model="scripted", prompt=["a b", "c d"], n=2, max_tokens=2)
    assert [(c.index, c.text, c.finish_reason) for c in found.choices] == [(i, "Héllo", "length") for i in range(4)]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (6, 8)


def test_echo_with_logprobs_lines_up(stage: Stage) -> None:
    found = stage.client.completions.create(model="scripted", prompt="Ünder the", echo=True, logprobs=1, max_tokens=1)
    choice = found.choices[0]
    told = choice.logprobs
    assert choice.text == "Ünder theHé"
    assert told.tokens == ["Ünder", " the", "Hé"]  # the document-start token is not the caller's
    ends = [*told.text_offset[1:], len(choice.text)]
    assert [choice.text[a:b] for a, b in zip(told.text_offset, ends, strict=True)] == told.tokens
    assert [table[t] for table, t in zip(told.top_logprobs, told.tokens, strict=True)] == told.token_logprobs


def test_scoring_only(stage: Stage) -> None:
    found = stage.client.completions.create(model="scripted", prompt=[5, 6], echo=True, logprobs=0, max_tokens=0)
    assert found.choices[0].text == "<5><6>"
    assert found.choices[0].logprobs.tokens == ["<5>", "<6>"]


def test_completions_stream(stage: Stage) -> None:
    texts: dict[int, str] = {}
    tokens: dict[int, list[str]] = {}
    offsets: dict[int, list[int]] = {}
    for chunk in stage.client.completions.create(
        model="scripted", prompt=["a b", "c"], stream=True, echo=True, logprobs=1, max_tokens=2
    ):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        tokens.setdefault(choice.index, []).extend(choice.logprobs.tokens)
        offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset)
    assert texts == {0: "a bHéllo", 1: "cHéllo"}
    assert tokens == {0: ["a", " b", "Hé", "llo"], 1: ["c", "Hé", "llo"]}
    assert offsets == {0: [0, 1, 3, 5], 1: [0, 1, 3]}


def test_next_tokens(stage: Stage) -> None:
    found = httpx.post(f"{stage.url}/v1/next", json={"model": "scripted", "prompt": "x", "k": 3}).json()["tokens"]
    assert [set(row) for row in found] == [{"id", "text", "logprob", "prob"}] * 3
    assert found[0] == {"id": 0, "text": " w0", "logprob": -1.0, "prob": math.exp(-1)}


def test_errors_are_the_clients_own(stage: Stage) -> None:
    chat = stage.client.chat.completions
    with pytest.raises(openai.NotFoundError) as missing:
        chat.create(model="scriptd", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert "did you mean 'scripted'" in missing.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        chat.create(model="scripted", messages=HELLO, temperature=1000)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as streamed:
        chat.create(model="scripted", messages=[], stream=True)
    assert streamed.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="only chats"):
        stage.client.completions.create(model="endless", prompt="x")


def test_other_refusals(stage: Stage) -> None:
    assert httpx.get(f"{stage.url}/nothing").status_code == 404
    assert httpx.get(f"{stage.url}/v1/chat/completions").status_code == 405
    large = httpx.post(f"{stage.url}/v1/chat/completions", content=b'"' + b"x" * 30_000 + b'"')
    assert (large.status_code, set(large.json()["error"])) == (413, {"message", "type", "param", "code"})
    broken = httpx.post(f"{stage.url}/v1/chat/completions", content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_method_of_no_route_is_told_so_without_a_key() -> None:
    with served(Models(("echo",), opener=lambda ref: EchoChat()), key="sk-one") as url:
        found = httpx.request("TRACE", f"{url}/v1/chat/completions")
        assert (found.status_code, found.headers["allow"]) == (405, "POST")
        assert httpx.get(f"{url}/v1/models").status_code == 401


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'{"messages": NaN}', b"[" * 100_000, b'"text"', b'{"a":' * 100_000]
)
def test_a_body_that_is_no_object(stage: Stage, data: bytes) -> None:
    for headers in ({}, {"content-type": "application/json"}):
        answer = httpx.post(f"{stage.url}/v1/chat/completions", content=data[:19_000], headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_generation(stage: Stage, stream: bool) -> None:
    stage.endless.ended.clear()
    body = {"model": "endless", "messages": HELLO, "stream": stream}
    with httpx.Client(timeout=0.5) as client:
        if stream:
            with client.stream("POST", f"{stage.url}/v1/chat/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{stage.url}/v1/chat/completions", json=body)
    assert stage.endless.ended.wait(3)
    said = stage.endless.said
    time.sleep(0.1)
    assert stage.endless.said == said


def test_many_streams_at_once(stage: Stage) -> None:
    def ask(number: int) -> str:
        stream = stage.client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": f"word {number}"}], stream=True
        )
        return "".join(c.choices[0].delta.content or "" for c in stream)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [f"word {i}" for i in range(64)]


def test_an_error_on_the_way_travels_as_an_event() -> None:
    class Breaks(Scripted):
        def stream(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            yield from list(super().stream(*args, **kwargs))[:2]
            time.sleep(0.2)
            raise RuntimeError("a secret path")

    with served(Models(("m",), opener=lambda ref: Breaks())) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="internal error"):
            list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
        whole = httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO})
        assert whole.status_code == 500
        assert "secret" not in whole.text


def test_the_default_model_scores_as_its_engine_does(default_model: str) -> None:
    """Echoed log-probabilities of ids equal the engine's own, and the greedy token leads its table."""
    from ladderlm.talk import open_chat

    chat = open_chat(default_model)
    ids = chat.tokenizer.encode("The cat sat on the mat")
    with served(Models(("m",), opener=lambda ref: chat)) as url:
        body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        told = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
        assert told["token_logprobs"][0] is None
        scored = chat.engine.score(ids[:1], [ids[1:]])[0]
        assert told["token_logprobs"][1:-1] == pytest.approx(scored, abs=1e-4)
        assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())
        text = httpx.post(f"{url}/v1/completions", json=body | {"prompt": "Hi", "max_tokens": 0}, timeout=60).json()
        assert text["choices"][0]["text"] == "Hi"
        assert text["choices"][0]["logprobs"]["tokens"] == ["Hi"]
        said = httpx.post(
            f"{url}/v1/chat/completions", json={"messages": HELLO, "max_tokens": 4, "seed": 1}, timeout=60
        )
        assert said.json()["usage"]["completion_tokens"] <= 4
        beyond = httpx.post(f"{url}/v1/completions", json={"prompt": [10**7]}, timeout=60)
        assert beyond.status_code == 400
        long = httpx.post(f"{url}/v1/completions", json={"prompt": [5] * 9000}, timeout=60)
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    chat.close()
    assert json.dumps(told)


def test_a_thread_is_used_for_what_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind many streams each way to a thread and back is long."""
    used: list[str] = []
    run = anyio.to_thread.run_sync

    async def counted(function: Any, *args: Any, **settings: Any) -> Any:
        used.append(getattr(getattr(function, "func", function), "__qualname__", "?"))
        return await run(function, *args, **settings)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    with served(Models(("echo",), opener=lambda ref: EchoChat())) as url:

        def threads(method: str, path: str, **fields: Any) -> list[str]:
            used.clear()
            assert httpx.request(method, url + path, timeout=20, **fields).status_code == 200
            return list(used)

        assert threads("POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}) == []
        assert threads("GET", "/v1/models") == []
        assert threads("GET", "/v1/presets") == ["_run_sync_endpoint"]
        assert threads("GET", "/v1/usage")[0] == "_run_sync_endpoint"
        for size in (1000, 3_000_000):
            sent = {"data": {"purpose": "user_data"}, "files": {"file": ("a", b"x" * size)}}
            found = threads("POST", "/v1/files", **sent)
            assert found[0] == "_run_sync_endpoint"  # none while it comes in
            assert len(found) <= 2
