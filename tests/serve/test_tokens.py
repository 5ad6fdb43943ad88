"""/tokenize, /detokenize and /tokenizer_info of a real model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import served

from ladderlm.serve.models import Models
from ladderlm.talk import open_chat
from ladderlm.talk.echo import EchoChat
from ladderlm.talk.local import LocalChat
from ladderlm.types import Delta, Sampling

pytest.importorskip("uvicorn")


class Filling(EchoChat):
    """Knows what belongs between."""

    def between(self, prompt: str | Sequence[int], suffix: str) -> str:
        return f"between {prompt} and {suffix}"

    def complete(self, prompt: str | Sequence[int], sampling: Sampling, **settings: Any) -> Iterator[Delta]:
        return super().complete("".join(str(p) for p in prompt), sampling, **settings)


Made = tuple[httpx.Client, LocalChat]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_folder import save

    folder = tmp_path_factory.mktemp("models") / "base"
    save(folder)
    chat = open_chat(str(folder))
    assert isinstance(chat, LocalChat)
    chats = {"m": chat, "echo": EchoChat(), "filling": Filling()}
    with served(Models(tuple(chats), opener=chats.__getitem__)) as url:
        yield httpx.Client(base_url=url), chat
    chat.close()


def test_text(made: Made) -> None:
    client, chat = made
    found = client.post("/tokenize", json={"prompt": "hello world", "return_token_strs": True}).json()
    assert found["tokens"] == chat.prompt_ids("hello world")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), chat.engine.context_length)
    assert len(found["token_strs"]) == found["count"]
    bare = client.post("/tokenize", json={"prompt": "hello world", "add_special_tokens": False}).json()
    assert bare["tokens"] == chat.tokenizer.encode("hello world")
    assert client.post("/detokenize", json={"tokens": bare["tokens"]}).json() == {"prompt": "hello world"}


def test_a_spelled_control_token_stays_text(made: Made) -> None:
    client, chat = made
    for name in chat.tokenizer.control:
        found = client.post("/tokenize", json={"prompt": f"a{name}", "add_special_tokens": False}).json()["tokens"]
        assert not set(found) & set(chat.tokenizer.control.values())
        id = chat.tokenizer.control[name]
        bare = {"prompt": name, "add_special_tokens": False}
        assert client.post("/tokenize", json=bare).json()["tokens"] == [id]
        parsed = {"prompt": f"a{name}", "add_special_tokens": False, "parse_special": True}
        assert client.post("/tokenize", json=parsed).json()["tokens"][-1] == id
        assert client.post("/detokenize", json={"tokens": [id]}).json() == {"prompt": name}


def test_a_chat(made: Made) -> None:
    client, chat = made
    if chat.files.template is None:
        refused = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
        assert refused.status_code == 400
        return
    prompt = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()["tokens"]
    bare = client.post(
        "/tokenize", json={"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": False}
    ).json()["tokens"]
    assert prompt[: len(bare)] == bare


def test_wrong_ids_and_methods(made: Made) -> None:
    client, _ = made
    assert client.post("/detokenize", json={"tokens": [2**30]}).status_code == 404
    for method, path, allowed in (("GET", "/tokenize", "POST"), ("PATCH", "/v1/responses/x", "DELETE, GET")):
        refused = client.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


def test_info(made: Made) -> None:
    client, chat = made
    found = client.get("/tokenizer_info", params={"model": "m"}).json()
    end = chat.tokenizer.eos_id
    assert found["eos_token"] == (None if end is None else chat.tokenizer.token_text(end))
    assert found["vocab_size"] == chat.tokenizer.vocab_size
    assert client.get("/tokenizer_info").json() == found


def test_a_suffix(made: Made) -> None:
    body = {"prompt": "a", "suffix": "b", "max_tokens": 9}
    found = made[0].post("/v1/completions", json={"model": "filling", **body}).json()
    assert found["choices"][0]["text"] == "between a and b"
    for model in ("m", "echo"):
        refused = made[0].post("/v1/completions", json={"model": model, **body})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "messages"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/tokenize", {"model": "echo", "prompt": "a"}, "model"),
    ],
)
def test_what_makes_no_sense(made: Made, path: str, body: dict[str, object], field: str) -> None:
    answer = made[0].post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
