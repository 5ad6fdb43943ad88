"""Vectors of texts: numpy against torch for every encoder family, pooling, and the folder's own word on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, byte_tokenizer, tiny

from ladderlm.engine import load, load_embedder
from ladderlm.engine.encoder import ReferenceEncoder
from ladderlm.engine.reference import ACTIVATIONS, ReferenceDecoder
from ladderlm.errors import ContextOverflow, UsageError
from ladderlm.models import families, open_model, save_model
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles

DOCUMENTS = [[1, 5, 6, 9, 30], [7], list(range(3, 27)), [4, 4, 8, 2, 11], list(range(40, 70))]
LINEAGE = {"base": {"name": "x", "licence": "mit"}, "licence": "mit"}
_BERT = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": _BERT,
    "Roberta": {**_BERT, "pad_token_id": 1, "type_vocab_size": 1},
    "DistilBert": {"vocab_size": 257, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48,
                   "max_position_embeddings": 40},
    "ModernBert": {**_BERT, "local_attention": 8, "pad_token_id": 0},
}  # fmt: skip


def encoder_arch(family: str) -> Architecture:
    return families.from_hf({"model_type": family.lower(), "architectures": [f"{family}Model"], **CONFIGS[family]})


def saved(folder: Path, arch: Architecture) -> ModelFiles:
    weights = KindWeights(arch)
    tensors = {name: weights.float32(name) for name in weights.names()}
    save_model(folder, arch, tensors, byte_tokenizer(), None, generation={}, lineage=LINEAGE)
    return open_model(str(folder))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_numpy_encoder_is_the_torch_one(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from ladderlm.nn import load_encoder

    torch.set_num_threads(1)
    files = saved(tmp_path / "m", encoder_arch(family))
    ids, lengths = torch.tensor([i for d in DOCUMENTS for i in d]), [len(d) for d in DOCUMENTS]
    with torch.no_grad():
        theirs = load_encoder(files)(ids, lengths).numpy()
    ours = ReferenceEncoder(files.arch, files.weights).hidden_each(DOCUMENTS)
    assert [len(h) for h in ours] == lengths
    np.testing.assert_allclose(np.concatenate(ours), theirs, atol=1e-4)


@pytest.mark.parametrize(("pooling", "pool"), [("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]),
                                               ("last", lambda h: h[-1])])  # fmt: skip
def test_a_decoder_is_pooled(pooling: str, pool: Any, tmp_path: Path) -> None:
    files = saved(tmp_path / "m", tiny())
    found = load_embedder(files, pooling=pooling).embed(DOCUMENTS)
    decoder = ReferenceDecoder(files.arch, files.weights)
    for vector, ids in zip(found, DOCUMENTS, strict=True):
        wanted = pool(decoder.hidden(ids))
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_vectors_keep_their_order_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load_embedder(saved(tmp_path / "m", encoder_arch("Bert")))
    together = embedder.embed(DOCUMENTS)
    assert together.shape == (5, embedder.dim)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    monkeypatch.setattr("ladderlm.engine.embed._TOKENS", 1)
    np.testing.assert_allclose(embedder.embed(DOCUMENTS), together, atol=1e-5)
    assert embedder.embed([]).shape == (0, embedder.dim)
    np.testing.assert_allclose(embedder.embed(["ab"]), embedder.embed([embedder.ids("ab")]))


def test_the_first_dimensions_alone(tmp_path: Path) -> None:
    embedder = load_embedder(saved(tmp_path / "m", encoder_arch("Bert")))
    whole, short = embedder.embed(DOCUMENTS), embedder.embed(DOCUMENTS, dimensions=8)
    np.testing.assert_allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(UsageError, match="between 1 and 32"):
        embedder.embed(DOCUMENTS, dimensions=33)


def test_what_cannot_be_embedded_is_refused(tmp_path: Path) -> None:
    embedder = load_embedder(saved(tmp_path / "m", encoder_arch("Bert")))
    with pytest.raises(UsageError, match="no tokens"):
        embedder.embed([[]])
    with pytest.raises(ContextOverflow, match="41 tokens"):
        embedder.embed([[1] * 41])
    with pytest.raises(UsageError, match="outside"):
        embedder.embed([[257]])


def test_the_folder_says_how_to_pool(tmp_path: Path) -> None:
    files = saved(tmp_path / "m", encoder_arch("Bert"))
    assert load_embedder(files).pooling == "mean"
    (files.path / "1_Pooling").mkdir()
    stated = files.path / "1_Pooling" / "config.json"
    stated.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert load_embedder(files).pooling == "cls"
    assert load_embedder(files, pooling="last").pooling == "last"
    stated.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UsageError, match="pooling_mode_max_tokens"):
        load_embedder(files)
    (files.path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(UsageError, match="Dense"):
        load_embedder(files)
    with pytest.raises(UsageError, match="unknown pooling"):
        load_embedder(saved(tmp_path / "n", encoder_arch("Bert")), pooling="max")


def test_an_encoder_does_not_continue_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="open_embedder"):
        load(saved(tmp_path / "m", encoder_arch("Bert")))


def test_gelu_is_the_exact_one() -> None:
    import math

    x = np.linspace(-9, 9, 4001, dtype=np.float32).reshape(-1, 1)
    exact = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x[:, 0].astype(float)]
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x)[:, 0], exact, atol=1e-6)
