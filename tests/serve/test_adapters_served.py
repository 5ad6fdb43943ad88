"""Adapters in chat and serve: on the base's engine, several at once, replaced while it serves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from ladderlm import engine
from ladderlm.errors import NotFound, UsageError
from ladderlm.models import open_model
from ladderlm.models.adapter import LoraConfig, save_adapter
from ladderlm.models.safetensors import write_safetensors
from ladderlm.serve.models import Models
from ladderlm.talk import open_chat
from ladderlm.talk.local import LocalChat
from ladderlm.types import Sampling

GREEDY = Sampling(temperature=0, max_tokens=8, logprobs=0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_folder import save

    save(tmp_path / "base")
    return tmp_path / "base"


def soft_prompt(base: Path, name: str, seed: int, tokens: int = 3) -> Path:
    """An adapter folder beside `base`, as PEFT writes it."""
    path = base.with_name(name)
    path.mkdir(exist_ok=True)
    dim = open_model(str(base)).arch.dim
    values = np.random.default_rng(seed).normal(0, 2, (tokens, dim)).astype(np.float32)
    write_safetensors(path / "adapter_model.safetensors", {"prompt_embeddings": values})
    spec = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": str(base), "num_virtual_tokens": tokens}
    (path / "adapter_config.json").write_text(json.dumps(spec))
    return path


def lora(base: Path, name: str, seed: int) -> Path:
    """A LoRA of rank 4 on every matrix of every layer."""
    random, tensors = np.random.default_rng(seed), {}
    for matrix, shape in open_model(str(base)).arch.tensor_shapes().items():
        if matrix.startswith("model.layers.") and matrix.endswith("_proj.weight"):
            for half, size in (("A", (4, shape[1])), ("B", (shape[0], 4))):
                stem = matrix.removesuffix(".weight")
                tensors[f"{stem}.lora_{half}.weight"] = random.normal(0, 0.3, size).astype(np.float32)
    path = base.with_name(name)
    save_adapter(path, str(base), LoraConfig(4, 8.0), tensors)
    return path


def said(chat: object) -> list[tuple[float, ...]]:
    """What it writes, and how likely that was."""
    assert isinstance(chat, LocalChat)
    return [(t.id or 0, t.logprob or 0) for d in chat.complete("abab", GREEDY) for t in d.tokens]


def test_a_chat_with_a_tuned_prompt(base: Path) -> None:
    path = soft_prompt(base, "soft", 0)
    plain, tuned = open_chat(str(base)), open_chat(f"{base}+{path}")
    assert tuned.name == "base+soft"
    assert said(tuned) != said(plain)
    assert tuned.next("ab") != plain.next("ab")
    assert tuned.rank("ab", ["a", "b"]) != plain.rank("ab", ["a", "b"])
    by_itself = open_chat(str(path))  # the adapter names its base
    assert said(by_itself) == said(tuned)
    for chat in (plain, tuned, by_itself):
        chat.close()
        chat.close()
    with pytest.raises(NotFound):
        said(tuned)


def test_a_tuned_prompt_is_not_merged(base: Path) -> None:
    with pytest.raises(UsageError, match="merged"):
        open_model(f"{base}+{soft_prompt(base, 'soft', 0)}")


def test_several_adapters_share_one_engine(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], engine.load
    monkeypatch.setattr(engine, "load", lambda files, **more: loaded.append(files.name) or load(files, **more))
    refs = [str(base), *(f"{base}+{soft_prompt(base, f'soft-{i}', i)}" for i in range(4))]
    models = Models(refs, keep=1)
    assert set(models.names()) >= {"base", *refs[1:]}
    answers = []
    for name in ("base", *refs[1:]):
        with models.use(name) as chat:
            answers.append(said(chat))
    assert loaded == ["base"]
    assert len({tuple(a) for a in answers}) == 5
    assert [models.state(name) for name in ("base", *refs[1:])] == ["ready"] * 5, "adapters do not push out each other"
    with models.use(refs[1]) as chat:
        assert said(chat) == answers[1]


def test_loras_by_model_name_share_one_engine(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], engine.load
    monkeypatch.setattr(engine, "load", lambda files, **more: loaded.append(files.name) or load(files, **more))
    paths = [lora(base, name, seed) for seed, name in enumerate(("one", "two"))]
    models = Models([str(base), *map(str, paths)])
    answers = {}
    for name in ("base", "one", "two", "one"):
        with models.use(name) as chat:
            assert answers.setdefault(name, said(chat)) == said(chat)
    assert loaded == ["base"]
    assert len({tuple(a) for a in answers.values()}) == 3
    monkeypatch.undo()
    for path in paths:
        merged = open_model(f"{base}+{path}")  # its weights are the sum
        alone = LocalChat(merged, engine.load(merged))
        assert [i for i, _ in said(alone)] == [i for i, _ in answers[path.name]]
        np.testing.assert_allclose([p for _, p in said(alone)], [p for _, p in answers[path.name]], atol=1e-3)
        alone.close()


def test_a_replaced_adapter_is_read_anew(base: Path) -> None:
    path = soft_prompt(base, "soft", 0)
    models = Models((str(path),))
    with models.use("soft") as chat:
        before = said(chat)
        soft_prompt(base, "soft", 1)
        os.utime(path, ns=(1, 1))
        with models.use("soft") as other:
            assert said(other) != before
            assert isinstance(other, LocalChat)
            assert isinstance(chat, LocalChat)
            assert other.engine is chat.engine
        assert said(chat) == before, "who has the old one keeps it"


def test_a_base_goes_with_its_last_adapter(base: Path, tmp_path: Path) -> None:
    path = soft_prompt(base, "soft", 0)
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    models = Models((str(path), str(other)), keep=1)
    with models.use("soft") as chat:
        assert isinstance(chat, LocalChat)
        held = chat.engine
    with models.use("other"):
        pass
    assert (models.state("soft"), models.state("other")) == ("idle", "ready")
    with pytest.raises(UsageError, match="closed"):
        held.next_logits([1])
