"""RemoteChat against a server that speaks the OpenAI wire."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from openai_server import Server, answer, error, events, reply, said, usage

from ladderlm.errors import (
    AuthError,
    ContextOverflow,
    DeadlineExceeded,
    FormatError,
    LadderError,
    NetworkError,
    NotFound,
    Overloaded,
    UsageError,
)
from ladderlm.talk import Talker, open_chat, transport
from ladderlm.talk.prices import Budget, OverBudget
from ladderlm.talk.remote import RemoteChat
from ladderlm.types import Cancel, Chat, Completion, Conversation, Message, Sampling, Tool, ToolCall, ToolResult

HELLO = Conversation.of("hello")
PLAIN = Sampling()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(server: Server, sampling: Sampling = PLAIN, conversation: Conversation = HELLO, **options: Any) -> Completion:
    return Completion.fold(RemoteChat(server.url, "m", **options).stream(conversation, sampling))


def test_streams_an_answer_with_usage() -> None:
    with Server(answer("Hel", "lo\u2028wörld")) as server:
        chat = open_chat(server.url + "#m")
        assert isinstance(chat, Chat)
        assert isinstance(chat, Talker)
        done = Completion.fold(
            chat.stream(Conversation.of("hello", "be kind"), Sampling(temperature=0, max_tokens=9, stop=("x",)))
        )
    assert done.text == "Hello\u2028wörld"
    assert done.choices[0].finish_reason == "stop"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cost) == (3, 2, None)
    body = server.bodies[0]
    assert server.paths == ["/v1/chat/completions"]
    assert body["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == ("m", 0, 9, ["x"])
    assert not {"top_k", "seed", "n", "logit_bias"} & body.keys()
    assert "Authorization" not in server.headers[0]


def test_without_a_name_the_server_is_asked() -> None:
    with Server(answer("a")) as server:
        assert open_chat(server.url + "/v1").name == "first"
    assert server.paths == ["/v1/models"]


def test_reasoning_tools_and_logprobs() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"q":'}}
    more = {"index": 0, "function": {"arguments": '"x"}'}}
    table = [{"token": "b", "logprob": -2.0}, {"token": "a", "logprob": -0.5}]
    tops = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": table}]
    script = events(
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
        said("a", logprobs={"content": tops}),
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [more]}, "finish_reason": "tool_calls"}]},
    )
    turns = (Message("assistant", (ToolCall("c0", "look", "{}"),)), Message("tool", (ToolResult("c0", "found"),)))
    talk = Conversation((Message.of("user", "q"), *turns), (Tool("look", "looks"),))
    with Server(script) as server:
        choice = ask(server, Sampling(logprobs=2), talk).choices[0]
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("hm", "a", "tool_calls")
    assert choice.tool_calls == (ToolCall("c1", "look", '{"q":"x"}'),)
    assert [c.text for c in choice.tokens[0].top] == ["a", "b"]
    assert choice.tokens[0].data == (97,)
    sent = server.bodies[0]
    assert sent["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert sent["messages"][2] == {"role": "tool", "tool_call_id": "c0", "content": "found"}
    assert (sent["logprobs"], sent["top_logprobs"], sent["tools"][0]["function"]["name"]) == (True, 2, "look")


def test_a_server_that_does_not_stream() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "all"}, "finish_reason": "stop"}]}
    with Server(reply(200, whole)) as server:
        assert ask(server).text == "all"


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (error(401, "bad key"), AuthError, "OPENAI_API_KEY"),
        (error(404, "no model m"), NotFound, "no model m"),
        (error(429, "slow down"), Overloaded, "slow down"),
        (error(429, "pay first", "insufficient_quota"), Overloaded, "pay first"),
        (error(500, "oops"), NetworkError, "oops"),
        (error(400, "temperature is odd"), UsageError, "temperature is odd"),
        (error(400, "too long", "context_length_exceeded"), ContextOverflow, "too long"),
        (reply(307, {}, location="http://elsewhere.invalid/"), NetworkError, "elsewhere.invalid"),
        (reply(200, [1]), FormatError, "JSON object"),
        (reply(200, {"choices": [7]}), FormatError, "OpenAI form"),
        (events({"error": {"message": "out of memory"}}), NetworkError, "out of memory"),
        (events(said("half"), done=False), NetworkError, "broke off"),
    ],
)
def test_errors_are_one_line(step: Any, kind: type[LadderError], words: str) -> None:
    with Server(step) as server, pytest.raises(kind, match=words) as caught:
        ask(server)
    assert "\n" not in str(caught.value)


def test_retries_until_it_works() -> None:
    with Server(error(429, "wait", retry_after="0"), error(503, "loading"), answer("ok")) as server:
        assert ask(server).text == "ok"
    assert len(server.bodies) == 3


def test_gives_up_and_never_retries_after_the_first_byte() -> None:
    with Server(error(503, "down")) as server:
        with pytest.raises(NetworkError):
            ask(server)
        assert len(server.bodies) == transport.ATTEMPTS
    with Server(events(said("half"), done=False)) as server:
        with pytest.raises(NetworkError):
            ask(server)
        assert len(server.bodies) == 1
    with Server(error(429, "quota", "insufficient_quota")) as server:
        with pytest.raises(Overloaded):
            ask(server)
        assert len(server.bodies) == 1


def test_a_long_retry_after_is_told_not_waited_for() -> None:
    with Server(error(429, "wait", retry_after="3600")) as server, pytest.raises(Overloaded, match="again in 3600 s"):
        ask(server)


def test_nobody_there() -> None:
    with pytest.raises(NetworkError, match="cannot reach"):
        list(RemoteChat("http://127.0.0.1:9", "m").stream(HELLO, PLAIN))
    with pytest.raises(UsageError):
        RemoteChat("http://name:secret@host", "m")


def test_the_key_comes_from_the_named_variable_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with Server(answer("a"), error(401, "wrong key sk-secret given")) as server:
        ask(server, key_env="MY_KEY")
        assert server.headers[0]["Authorization"] == "Bearer sk-secret"
        with pytest.raises(AuthError, match="MY_KEY") as caught:
            ask(server, key_env="MY_KEY")
    assert "sk-secret" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "sk\nX-Other: 1")
    with Server(answer("a")) as server:
        with pytest.raises(AuthError) as caught:
            ask(server, key_env="MY_KEY")
        assert "X-Other" not in str(caught.value)
        assert not server.bodies


def test_the_key_is_not_sent_on_by_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server(answer("a")) as other, Server(reply(307, {}, location=other.url + "/v1/chat/completions")) as server:
        with pytest.raises(NetworkError):
            ask(server)
        assert not other.bodies


def test_connections_are_not_reused() -> None:
    with Server(answer("a")) as server:
        chat = RemoteChat(server.url, "m")
        for _ in range(2):
            list(chat.stream(HELLO, PLAIN))
    assert [h["Connection"] for h in server.headers] == ["close", "close"]


def test_cancel_and_deadline_wake_a_silent_server() -> None:
    hold = threading.Event()
    try:
        with Server(events(said("first"), hold=hold)) as server:
            chat, cancel = RemoteChat(server.url, "m"), Cancel()
            stream = chat.stream(HELLO, PLAIN, cancel=cancel)
            assert next(stream).text == "first"
            threading.Timer(0.1, cancel.set).start()
            began = time.monotonic()
            assert [d.finish_reason for d in stream] == ["cancelled"]
            with pytest.raises(DeadlineExceeded):
                list(chat.stream(HELLO, PLAIN, deadline=time.monotonic() + 0.2))
            assert time.monotonic() - began < 5
    finally:
        hold.set()


# --- Raw text -----------------------------------------------------------------------------------------------------

WORDS = {" heart": 0.5, " body": 0.25, " he": 0.1}


def raw(handler: Any, body: dict[str, Any]) -> None:
    """/v1/completions of a server with echo and logprobs; tokens are words with the space before them."""
    pieces: list[str] = []
    for word in body["prompt"].split(" "):
        pieces.append(word if not pieces else " " + word)
    pieces = [p for p in pieces if p]
    read = pieces if body.get("echo") else []
    written = [" heart"][: body["max_tokens"]]
    every = read + written
    offsets = [sum(map(len, every[:i])) for i in range(len(every))]
    values = [None if i == 0 and read else math.log(WORDS.get(t, 0.01)) for i, t in enumerate(every)]
    tops = [{w: math.log(p) for w, p in WORDS.items()}] * len(every)
    logprobs = {"tokens": every, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
    choice = {"index": 0, "text": "".join(every), "logprobs": logprobs, "finish_reason": "length"}
    reply(200, {"choices": [choice]})(handler, body)


def test_next_words_and_rank_of_raw_text() -> None:
    with Server(raw) as server:
        chat = open_chat(server.url + "#m")
        table = chat.next("Listen to your", 2)
        assert [(c.text, round(math.exp(c.logprob), 3)) for c in table] == [(" heart", 0.5), (" body", 0.25)]
        assert chat.rank("Listen to your", ["heart", "body"]) == pytest.approx([math.log(0.5), math.log(0.25)])
        assert chat.rank("Listen to your", ["heart body"]) == pytest.approx([math.log(0.125)])
        assert chat.word_sums("Listen to your", ["body"]) == {"body": pytest.approx(0.25)}
        done = Completion.fold(chat.complete("Listen to your", Sampling(max_tokens=1, prompt_logprobs=0)))
    assert [t.text for t in done.prompt] == ["Listen", " to", " your"]
    assert done.text == " heart"
    assert server.bodies[0]["max_tokens"] == 1


def test_a_server_without_echo_says_so_rather_than_scoring_at_chance() -> None:
    silent = {"choices": [{"index": 0, "text": "x", "logprobs": None, "finish_reason": "length"}]}
    with Server(reply(200, silent)) as server:
        chat = open_chat(server.url + "#m")
        with pytest.raises(NotFound, match="echo"):
            chat.rank("a", ["b", "c"])
        with pytest.raises(NotFound, match="log-probabilities"):
            chat.next("a")


def test_rank_in_a_chat_goes_by_the_first_token() -> None:
    rows = [{"token": t, "logprob": math.log(p)} for t, p in (("pos", 0.6), ("neg", 0.2), ("x", 0.1))]
    chunk = said(
        "pos", "length", logprobs={"content": [{"token": "pos", "logprob": math.log(0.6), "top_logprobs": rows}]}
    )
    with Server(events(chunk)) as server:
        chat = open_chat(server.url + "#m")
        scores = chat.rank(HELLO, ["negative", "positive", "unseen"])
        assert [round(math.exp(s), 2) for s in scores] == [0.2, 0.6, 0.1]
        assert chat.rank(HELLO, ["Negative", "POS"])[1] == pytest.approx(math.log(0.6))
        with pytest.raises(UsageError, match="no choice begins"):
            chat.rank(HELLO, ["apple", "berry"])
        with pytest.raises(UsageError, match="begin alike"):
            chat.rank(HELLO, ["position", "positive"])


# --- Costs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def prices(workspace: Path) -> None:
    (workspace / "config.toml").write_text("[prices.m]\ninput = 1.0\noutput = 1000.0\n", encoding="utf-8")


@pytest.mark.usefixtures("prices")
def test_costs_are_counted_and_capped() -> None:
    with Server(answer("a", "b")) as server:
        assert ask(server).usage.cost == pytest.approx((3 + 2 * 1000) / 1e6)
        chat = RemoteChat(server.url, "m", max_cost=0.005)
        list(chat.stream(HELLO, PLAIN))
        assert server.bodies[-1]["max_tokens"] == 4  # what 0.005 pays for
        list(chat.stream(HELLO, PLAIN))
        assert server.bodies[-1]["max_tokens"] == 2
        with pytest.raises(OverBudget, match="--max-cost"):
            list(chat.stream(HELLO, PLAIN))
    assert len(server.bodies) == 3


def test_a_cap_needs_a_price() -> None:
    with pytest.raises(UsageError, match="no price"):
        RemoteChat("http://127.0.0.1:9", "m", max_cost=1.0)


@pytest.mark.usefixtures("prices")
def test_threads_wait_for_each_others_claims() -> None:
    budget = Budget(0.003, "m")
    claimed, allowed = budget.claim(0, 3)
    assert allowed == 3
    got: list[int | None] = []
    other = threading.Thread(target=lambda: got.append(budget.claim(0, 2)[1]))
    other.start()
    other.join(0.1)
    assert other.is_alive()
    budget.settle(claimed, 0.001)
    other.join(5)
    assert got == [2]


@pytest.mark.usefixtures("prices")
def test_an_answer_that_breaks_off_counts_in_full() -> None:
    with Server(events(said("half"), done=False), answer("a")) as server:
        chat = RemoteChat(server.url, "m", max_cost=0.005)
        with pytest.raises(NetworkError):
            list(chat.stream(HELLO, Sampling(max_tokens=4)))
        with pytest.raises(OverBudget):
            list(chat.stream(HELLO, PLAIN))


def test_the_remote_path_needs_neither_engine_nor_torch() -> None:
    code = (
        "import sys; from ladderlm.talk import open_chat; open_chat('http://127.0.0.1:9#m'); "
        "heavy = {'torch', 'numba', 'ladderlm.engine', 'tokenizers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_usage_of_a_whole_body() -> None:
    with Server(events(said("a", "stop"), usage(7, 1))) as server:
        assert ask(server).usage.prompt_tokens == 7
