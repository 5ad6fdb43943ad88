"""/v1/embeddings, with a decoder and an encoder behind it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from engine_models import KindWeights, byte_tokenizer, tiny
from live import served

from ladderlm.engine.embed import Embedder, open_embedder
from ladderlm.models import families, save_model
from ladderlm.models.arch import Architecture
from ladderlm.serve.models import Models

pytest.importorskip("uvicorn")

LINEAGE = {"base": {"name": "x", "licence": "mit"}, "licence": "mit"}
BERT = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 257, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 40}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    archs: dict[str, Architecture] = {"encoder": families.from_hf(BERT), "decoder": tiny()}
    for name, arch in archs.items():
        weights = KindWeights(arch)
        tensors = {n: weights.float32(n) for n in weights.names()}
        save_model(folder / name, arch, tensors, byte_tokenizer(), None, generation={}, lineage=LINEAGE)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(Models([str(folder / "encoder"), str(folder / "decoder"), "echo"])) as url:
        yield f"{url}/v1"


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/embeddings", json=body, timeout=60)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_vectors(url: str, folder: Path, name: str) -> None:
    embedder: Embedder = open_embedder(str(folder / name))
    answer = ask(url, model=name, input=["one", [5, 6, 7]]).json()
    wanted = embedder.embed(["one", [5, 6, 7]])
    assert [d["index"] for d in answer["data"]] == [0, 1]
    np.testing.assert_allclose([d["embedding"] for d in answer["data"]], wanted, atol=1e-5)
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    short = ask(url, model=name, input="one", dimensions=8, encoding_format="base64").json()
    found = np.frombuffer(base64.b64decode(short["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(found, embedder.embed(["one"], dimensions=8)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "what"),
    [({"model": "encoder", "input": "x" * 41}, "41 tokens"), ({"model": "encoder", "input": ""}, "no tokens"),
     ({"model": "encoder", "input": [[999]]}, "outside"), ({"model": "encoder", "input": "a", "dimensions": 99}, "32"),
     ({"model": "echo", "input": "a"}, "no vectors")],
)  # fmt: skip
def test_refusals(url: str, body: dict[str, Any], what: str) -> None:
    answer = ask(url, **body)
    assert answer.status_code == 400
    assert what in answer.json()["error"]["message"]


def test_an_encoder_does_not_chat(url: str) -> None:
    body = {"model": "encoder", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "turns text into vectors" in answer.json()["error"]["message"]
