"""The model folder: what we write, transformers reads; what is broken is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from ladderlm.errors import FormatError, NotFound, StorageError, UsageError
from ladderlm.models import ModelFiles, open_model, save_model
from ladderlm.models import folder as folder_module
from ladderlm.models.folder import eager
from ladderlm.models.safetensors import read_safetensors, write_safetensors
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer


def save(path: Path, dtype: str = "float32", **changes: object) -> dict[str, np.ndarray]:
    weights = tiny.tensors()
    tokenizer = Tokenizer.from_gguf(tiny.vocabulary())
    lineage = {"licence": "apache-2.0", "data": [{"name": "rows", "licence": "cc-by-sa-4.0"}]}
    arguments = {"generation": {"temperature": 0.7}, "lineage": lineage, "dtype": dtype, **changes}
    save_model(path, tiny.ARCH, weights, tokenizer, ChatTemplate(tiny.TEMPLATE), **arguments)  # type: ignore[arg-type]
    return weights


def test_round_trip(tmp_path: Path) -> None:
    weights = save(tmp_path / "m")
    files = open_model(str(tmp_path / "m"))
    assert isinstance(files, ModelFiles)
    assert files.arch == tiny.ARCH
    for name, value in weights.items():
        assert np.array_equal(files.weights.float32(name), value)
    assert files.tokenizer.special == Tokenizer.from_gguf(tiny.vocabulary()).special
    assert files.template is not None
    assert files.template.source == tiny.TEMPLATE
    assert files.generation["temperature"] == 0.7
    assert files.generation["eos_token_id"] == [259, 257]
    assert files.lineage["licence"] == "apache-2.0"
    assert json.loads((tmp_path / "m" / "ladderlm.json").read_text())["format"] == 1
    card = (tmp_path / "m" / "README.md").read_text()
    assert "cc-by-sa-4.0" in card
    assert "share alike" in card


def test_the_hash_covers_content_not_place(tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    save(tmp_path / "c", lineage={"licence": "mit"})
    save(tmp_path / "d", dtype="bfloat16")
    a, b, c, d = (open_model(str(tmp_path / n)).hash for n in "abcd")
    assert a == b == c  # lineage is no part of the identity
    assert a != d


@pytest.mark.parametrize(("dtype", "kind", "bound"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 4e-3)])
def test_half_precision(tmp_path: Path, dtype: str, kind: str, bound: float) -> None:
    torch = pytest.importorskip("torch")
    weights = save(tmp_path / "m", dtype=dtype)
    files = open_model(str(tmp_path / "m"))
    name = "model.layers.0.mlp.up_proj.weight"
    blocks = files.weights.blocks(name)
    assert blocks is not None
    assert blocks.kind == kind
    wanted = torch.from_numpy(weights[name]).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(files.weights.float32(name), wanted)
    assert np.array_equal(blocks.float32(), wanted)
    assert np.abs(wanted - weights[name]).max() <= bound


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 20_000)
    weights = save(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    files = open_model(str(tmp_path / "m"))
    assert all(np.array_equal(files.weights.float32(n), v) for n, v in weights.items())
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(FormatError, match="outside its folder"):
        open_model(str(tmp_path / "m"))


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    weights = tiny.tensors()
    del weights["model.norm.weight"]
    tokenizer = Tokenizer.from_gguf(tiny.vocabulary())
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        save_model(tmp_path / "m", tiny.ARCH, weights, tokenizer, None, generation={}, lineage={})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="float32"):
        save(tmp_path / "m", dtype="float31")


def test_replace_must_be_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "m")
    with pytest.raises(StorageError, match="already exists"):
        save(tmp_path / "m")
    files = open_model(str(tmp_path / "m"))
    save(tmp_path / "m", replace=True)
    assert files.weights.float32("model.norm.weight").shape == (32,)  # the old mapping stays readable


@pytest.mark.parametrize("damage", ["cut", "length", "header", "gap", "dtype", "shape"])
def test_damaged_safetensors(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    data = path.read_bytes()
    swaps = {
        "header": (b'{"', b"{{"), "gap": (b"[24,40]", b"[28,40]"), "dtype": (b'"F32"', b'"F99"'),
        "shape": (b"[2,3]", b"[2,4]"),
    }  # fmt: skip
    if damage == "cut":
        data = data[:-1]
    elif damage == "length":
        data = (2**62).to_bytes(8, "little") + data[8:]
    else:
        assert swaps[damage][0] in data
        data = data.replace(*swaps[damage])
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        read_safetensors(path)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    save(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    good = config.read_text()
    for old, new, message in (
        ('"llama"', '"mamba"', "did you mean 'llama'"),
        ('"hidden_size": 32', '"hidden_size": 64', "shape"),
        ('"hidden_act": "silu"', '"hidden_act": "swish9"', "the activation 'swish9'"),
        ('"num_hidden_layers": 2,', "", "num_hidden_layers"),
    ):
        config.write_text(good.replace(old, new))
        with pytest.raises(FormatError, match=message):
            open_model(str(tmp_path / "m"))
    config.write_text(good)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        open_model(str(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(NotFound, match="safetensors"):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_computes_the_same(tmp_path: Path, dtype: str) -> None:
    """transformers loads what we wrote; its logits equal those of its own model with our weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save(tmp_path / "m", dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    state = model.state_dict()
    files = open_model(str(tmp_path / "m"))
    assert set(state) == set(files.weights.names())
    for name in files.weights.names():
        assert np.array_equal(state[name].numpy(), files.weights.float32(name)), name
    assert model.config.rope_parameters["rope_theta"] == tiny.ARCH.rope_theta
    assert model.generation_config.eos_token_id == [259, 257]


@pytest.mark.slow
def test_the_default_model_exports_to_transformers(default_model: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    files = open_model(default_model)
    save_model(
        tmp_path / "m", files.arch, eager(files.weights), files.tokenizer, files.template,
        generation=files.generation, lineage=files.lineage,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert sum(p.numel() for p in model.parameters()) == files.arch.parameters
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What do dogs like to eat?"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "dog" in text.lower()
    again = open_model(str(tmp_path / "m"))
    assert again.tokenizer.special == files.tokenizer.special
