"""Requests that cannot be answered, over HTTP: a clear error for each alone, while others go on to the bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import served

from ladderlm.models import open_model
from ladderlm.models.adapter import LoraConfig, save_adapter
from ladderlm.serve.models import Models

pytest.importorskip("uvicorn")
HELLO = [{"role": "user", "content": "hello"}]
NOTHING = r"[^\s\S]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_folder import save

    folder = tmp_path_factory.mktemp("served") / "m"
    save(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A tiny model, the same with an adapter of no numbers, and the same with weights of no numbers."""
    from test_folder import save, tiny

    adapter, tensors = folder.with_name("lost"), {}
    for name, shape in open_model(str(folder)).arch.tensor_shapes().items():
        if name.endswith("q_proj.weight"):
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = np.full((2, shape[1]), np.nan, np.float32)
            tensors[f"{stem}.lora_B.weight"] = np.ones((shape[0], 2), np.float32)
    save_adapter(adapter, str(folder), LoraConfig(2, 2.0), tensors)
    before = tiny.tensors
    broken = {name: np.full_like(value, np.nan) for name, value in before().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tensors", lambda: broken)
        save(folder.with_name("nan"))
    with served(Models((str(folder), f"{folder}+{adapter}", str(folder.with_name("nan"))))) as address:
        yield address


def post(url: str, route: str = "completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/{route}", json={"model": "m"} | body, timeout=60)


HOSTILE: list[tuple[str, dict[str, Any], int, str]] = [
    ("no tokens", {"prompt": []}, 400, "at least 1 item"),
    ("an empty list of ids", {"prompt": [[]]}, 400, "at least 1 item"),
    ("a prompt longer than the context", {"prompt": [5] * 129}, 400, "context of 128"),
    ("a prompt that fills the context", {"prompt": [5] * 128}, 400, "context of 128"),
    ("an id out of range", {"prompt": [5, 260]}, 400, "outside 0..259"),
    ("a huge id", {"prompt": [2**70]}, 400, "less than or equal"),
    ("an id below 0", {"prompt": [5, -1]}, 400, "greater than or equal"),
    ("a stop id out of range", {"prompt": [5], "stop_token_ids": [10**9], "max_tokens": 2}, 200, ""),
    ("a biased id out of range", {"prompt": [5], "logit_bias": {"260": 1}}, 400, "logit_bias"),
    ("10,000 stop strings", {"prompt": [5], "stop": [f"stop {i}" for i in range(10_000)]}, 400, "at most 16"),
    ("a regex that admits nothing",
     {"prompt": [5], "response_format": {"type": "regex", "regex": NOTHING}}, 400, "admits no text"),
    ("a grammar without end", {"prompt": [5], "grammar": "root ::= root"}, 400, "admits no text"),
    ("a grammar that is none", {"prompt": [5], "grammar": "root ::= ("}, 400, "not a usable grammar"),
    ("a schema that admits nothing",
     {"prompt": [5], "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}}, 400, ""),
    ("10,000 answers", {"prompt": [5], "n": 10_000}, 400, "n"),
    ("weights that are no numbers", {"model": "nan", "prompt": [5, 6]}, 422, "not numbers"),
    ("a chat with them", {"model": "nan", "messages": HELLO, "max_tokens": 4}, 422, "not numbers"),
    ("a stream of them", {"model": "nan", "prompt": [5, 6], "stream": True}, 422, "not numbers"),
    ("an adapter that is no numbers", {"model": "lost", "prompt": [5, 6]}, 422, "not finite"),
]  # fmt: skip


def good(url: str, seed: int) -> Any:
    """A seeded answer and how likely its tokens were."""
    bias = {"257": -100, "259": -100}  # what would end it
    answer = post(url, prompt=[seed] * 20, seed=seed, max_tokens=60, logprobs=0, logit_bias=bias)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def test_each_fails_alone(url: str) -> None:
    alone = [good(url, seed) for seed in range(1, 7)]
    names = {Path(m["id"]).name: m["id"] for m in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]}
    with ThreadPoolExecutor(16) as pool:
        beside = [pool.submit(good, url, seed) for seed in range(1, 7)]
        routes = ["chat/completions" if "messages" in body else "completions" for _, body, _, _ in HOSTILE]
        bodies = [body | {"model": names[body.get("model", "m")]} for _, body, _, _ in HOSTILE]
        answers = [pool.submit(post, url, route, **body) for route, body in zip(routes, bodies, strict=True)]
        assert [asked.result() for asked in beside] == alone
    for (what, _, status, said), asked in zip(HOSTILE, answers, strict=True):
        answer = asked.result()
        assert answer.status_code == status, f"{what}: {answer.text}"
        if status != 200:
            message = answer.json()["error"]["message"]
            assert said in message, f"{what}: {message}"
            assert message != "internal error", what
    assert good(url, 1) == alone[0]
