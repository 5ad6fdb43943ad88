"""Merging, slicing and comparing models: by hand, through the verbs, and with transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladderlm.cli.main import main
from ladderlm.convert import diff, merge, slice
from ladderlm.convert.merge import MergeConfig, combine, parse_weights, slerp, ties
from ladderlm.convert.slice import SliceConfig, parse_layers, with_layers
from ladderlm.errors import StorageError, UsageError
from ladderlm.models import open_model, save_model
from ladderlm.models.adapter import LoraConfig, save_adapter
from ladderlm.models.arch import Architecture
from ladderlm.models.contents import native_dtype
from ladderlm.text.specs import byte_alphabet
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer

ARCH = Architecture(vocab_size=258, dim=16, layers=3, heads=2, kv_heads=1, head_dim=8, hidden=24, context_length=32)


def tokenizer(first: str = "he") -> Tokenizer:
    meta = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*byte_alphabet(), first, "<|endoftext|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3], "tokenizer.ggml.merges": [" ".join(first)],
        "tokenizer.ggml.eos_token_id": 257, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    return Tokenizer.from_gguf(meta)


def save(path: Path, seed: int, arch: Architecture = ARCH, first: str = "he", template: str = "{{ x }}",
         **lineage: Any) -> dict[str, np.ndarray]:  # fmt: skip
    random = np.random.default_rng(seed)
    weights = {n: random.normal(0, 0.3, s).astype(np.float32) for n, s in arch.tensor_shapes().items()}
    save_model(
        path,
        arch,
        weights,
        tokenizer(first),
        ChatTemplate(template),
        generation={},
        lineage=lineage or {"licence": "mit"},
    )
    return weights


def weights_of(path: Path) -> dict[str, np.ndarray]:
    files = open_model(str(path))
    return {name: files.weights.float32(name) for name in files.weights.names()}


def test_linear_is_the_weighted_mean_and_lineage_names_both(tmp_path: Path) -> None:
    a = save(tmp_path / "a", 1, licence="mit", data=[{"name": "rows", "licence": "cc-by-sa-4.0"}])
    b = save(tmp_path / "b", 2, licence="apache-2.0")
    config = MergeConfig((str(tmp_path / "a"), str(tmp_path / "b")), str(tmp_path / "m"), weights="3,1")
    found = merge.run(config)
    for name, value in weights_of(tmp_path / "m").items():
        np.testing.assert_allclose(value, 0.75 * a[name] + 0.25 * b[name], atol=1e-6)
    lineage = open_model(str(tmp_path / "m")).lineage
    assert [(p["name"], p["weight"]) for p in lineage["parents"]] == [("a", 0.75), ("b", 0.25)]
    assert lineage["parents"][0]["hash"] == open_model(str(tmp_path / "a")).hash
    assert found.licence == "apache-2.0 and cc-by-sa-4.0 and mit"
    assert any("share alike" in flag for flag in found.licence_flags)
    assert "merge" in (tmp_path / "m" / "README.md").read_text()
    with pytest.raises(StorageError, match="already exists"):
        merge.run(config)


def test_only_one_tensor_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result's tensors are asked for as they are written, each once."""
    for seed, name in enumerate("ab"):
        save(tmp_path / name, seed)
    asked: list[str] = []

    def watched(method: str, tensors: Any, *rest: Any) -> Any:
        asked.append(method)
        return combine(method, tensors, *rest)

    monkeypatch.setattr(merge, "combine", watched)
    merge.run(MergeConfig((str(tmp_path / "a"), str(tmp_path / "b")), str(tmp_path / "m")))
    assert len(asked) == len(ARCH.tensor_shapes())


def test_slerp_keeps_the_length_and_its_ends() -> None:
    a, b = np.array([[2.0, 0.0]], np.float32), np.array([[0.0, 2.0]], np.float32)
    half = slerp(a, b, 0.5)
    np.testing.assert_allclose(half, [[2**0.5, 2**0.5]], rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 0), a)
    np.testing.assert_allclose(slerp(a, b, 1), b, atol=1e-6)
    np.testing.assert_allclose(slerp(a, 2 * a, 0.5), 1.5 * a)
    np.testing.assert_allclose(slerp(a, 0 * a, 0.5), 0.5 * a)


def test_task_arithmetic_adds_the_differences(tmp_path: Path) -> None:
    base, a, b = (save(tmp_path / name, seed) for seed, name in enumerate(("base", "a", "b")))
    config = MergeConfig(
        (str(tmp_path / "a"), str(tmp_path / "b")), str(tmp_path / "m"), "task", "1,-0.5", str(tmp_path / "base")
    )
    merge.run(config)
    for name, value in weights_of(tmp_path / "m").items():
        np.testing.assert_allclose(value, base[name] + (a[name] - base[name]) - 0.5 * (b[name] - base[name]), atol=1e-6)
    assert open_model(str(tmp_path / "m")).lineage["base"]["name"] == "base"


def test_ties_trims_elects_and_averages() -> None:
    """The example worked by hand: entry 0 agrees, entry 1 quarrels and the larger wins, entry 3 is trimmed."""
    first = np.array([1.0, 4.0, 0.0, 0.1], np.float32)
    second = np.array([3.0, -2.0, 0.0, 0.2], np.float32)
    np.testing.assert_allclose(ties([first, second], [1, 1], 0.5), [2, 4, 0, 0])
    np.testing.assert_allclose(ties([first], [1], 1.0), first)
    np.testing.assert_allclose(ties([first], [0.5], 1.0), 0.5 * first)


def test_an_adapter_is_merged_into_its_base(tmp_path: Path) -> None:
    base = save(tmp_path / "base", 1)
    random = np.random.default_rng(5)
    name = "model.layers.1.self_attn.q_proj"
    a, b = (random.normal(size=s).astype(np.float32) for s in ((2, 16), (16, 2)))
    save_adapter(
        tmp_path / "tuned", str(tmp_path / "base"), LoraConfig(2, 4.0, ("q_proj",)),
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        lineage={"licence": "mit", "data": [{"name": "d", "licence": "cc-by-nc-4.0"}]},
    )  # fmt: skip
    found = merge.run(MergeConfig((f"{tmp_path / 'base'}+{tmp_path / 'tuned'}",), str(tmp_path / "m")))
    merged = weights_of(tmp_path / "m")
    np.testing.assert_allclose(merged[name + ".weight"], base[name + ".weight"] + 2 * (b @ a), atol=1e-5)
    np.testing.assert_array_equal(merged["model.norm.weight"], base["model.norm.weight"])
    assert any("non-commercial" in flag for flag in found.licence_flags)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "wide", 1, dataclasses.replace(ARCH, hidden=32))
    save(tmp_path / "other", 1, first="th")
    for other, message in (("wide", "hidden is 24 and 32"), ("other", "not the same tokens")):
        with pytest.raises(UsageError, match=message):
            merge.run(MergeConfig((str(tmp_path / "a"), str(tmp_path / other)), str(tmp_path / "m")))
    a = str(tmp_path / "a")
    for config, message in (
        (MergeConfig((a,), "m"), "one model only"),
        (MergeConfig((a, a, a), "m", "slerp"), "between two"),
        (MergeConfig((a, a), "m", "task"), "needs base"),
        (MergeConfig((a, a), "m", base=a), "takes no base"),
        (MergeConfig((a, a), "m", weights="1"), "1 weights for 2"),
        (MergeConfig((a, a), "m", weights="1,x"), "numbers"),
        (MergeConfig((a, a), "m", weights="1,-1"), "shares"),
        (MergeConfig((a, a), ""), "--out"),
    ):
        config = dataclasses.replace(config, out=str(tmp_path / config.out) if config.out else "")
        with pytest.raises(UsageError, match=message):
            merge.run(config)
    assert not (tmp_path / "m").exists()
    assert parse_weights("", 4, "linear") == (0.25,) * 4


def test_transformers_runs_a_merged_model(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for seed, name in enumerate("ab"):
        save(tmp_path / name, seed)
    merge.run(MergeConfig((str(tmp_path / "a"), str(tmp_path / "b")), str(tmp_path / "m")))
    states = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n, dtype=torch.float32).state_dict() for n in "abm"
    ]
    for name, value in states[2].items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


# --- slice --------------------------------------------------------------------------------------------------------


def test_a_slice_keeps_the_layers_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "a", 1)
    slice.run(SliceConfig(str(tmp_path / "a"), "0,2", str(tmp_path / "s")))
    kept = weights_of(tmp_path / "s")
    assert open_model(str(tmp_path / "s")).arch == dataclasses.replace(ARCH, layers=2)
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(kept[name.format(1)], whole[name.format(2)])
    np.testing.assert_array_equal(kept[name.format(0)], whole[name.format(0)])
    np.testing.assert_array_equal(kept["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
    assert open_model(str(tmp_path / "s")).lineage["recipe"] == {"layers": "0,2", "of": 3}


@pytest.mark.parametrize("text", ["", "x", "0-3", "2-1", "1,1", "2,0", "-1"])
def test_wrong_layers_are_named(text: str) -> None:
    with pytest.raises(UsageError):
        parse_layers(text, 3)


def test_lists_of_layers_are_numbered_anew() -> None:
    gemma = dataclasses.replace(
        ARCH, family="gemma2", layers=4, windows=(8, 0, 8, 0), norm_offset=True, placement="sandwich",
        activation="gelu_tanh", attention_cap=50.0, logit_cap=30.0, embed_scale=4.0,
    )  # fmt: skip
    assert with_layers(gemma, (0, 1)).windows == (8, 0)
    smol = dataclasses.replace(ARCH, family="smollm3", layers=8, unrotated=(3, 7))
    assert with_layers(smol, (0, 3, 4, 7)).unrotated == (1, 3)
    assert parse_layers("0-1, 3", 4) == (0, 1, 3)


# --- diff ---------------------------------------------------------------------------------------------------------


def test_a_model_differs_from_itself_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 1, licence="apache-2.0")
    found = diff.compare(open_model(str(tmp_path / "a")), open_model(str(tmp_path / "b")))
    assert found.same  # the lineage is no part of the model
    assert found.compared == len(ARCH.tensor_shapes())
    assert [entry[0] for entry in found.lineage] == ["licence"]
    assert main(["models", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "the same model" in capsys.readouterr().out


def test_what_differs_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = save(tmp_path / "a", 1)
    changed = weights | {"model.norm.weight": weights["model.norm.weight"] * np.float32(1.5)}
    arch = dataclasses.replace(ARCH, rope_theta=5e5)
    save_model(
        tmp_path / "b", arch, changed, tokenizer("th"), ChatTemplate("{{ y }}"), generation={"top_k": 3}, lineage={}
    )
    assert main(["models", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["config"] == [["rope_theta", 10000.0, 500000.0]]
    assert [t["name"] for t in found["tensors"]] == ["model.norm.weight"]
    assert found["tensors"][0]["rms"] == pytest.approx(0.5, rel=1e-5)
    assert found["tensors"][0]["max"] == pytest.approx(0.5, rel=1e-5)
    assert "-{{ x }}" in found["template"]
    assert "+{{ y }}" in found["template"]
    assert any("1 ids stand for other tokens" in said for said in found["tokenizer"])
    assert ["top_k", None, 3] in found["generation"]
    assert main(["models", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "they differ" in capsys.readouterr().out


def test_other_shapes_and_layers_are_told(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 1, dataclasses.replace(ARCH, layers=2, hidden=32))
    found = diff.compare(open_model(str(tmp_path / "a")), open_model(str(tmp_path / "b")))
    assert len(found.missing) == len(ARCH.layer_shapes(2, ""))
    assert {entry[0].rsplit(".", 2)[1] for entry in found.shapes} == {"gate_proj", "up_proj", "down_proj"}
    assert not found.same


# --- the verbs ----------------------------------------------------------------------------------------------------


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("ab"):
        save(tmp_path / name, seed, licence="unknown")
    paths = [str(tmp_path / name) for name in "ab"]
    assert main(["models", "merge", *paths, "--out", str(tmp_path / "m"), "--weights", "0.5,0.5"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "m")
    assert "ask before you share" in said.err
    assert (
        main(["models", "slice", str(tmp_path / "m"), "--layers", "0-1", "--out", str(tmp_path / "s"), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
    assert main(["models", "show", str(tmp_path / "m"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sum(shown["parameters_by_kind"].values()) == shown["parameters"]
    assert shown["parameters_by_kind"]["attention"] == 3 * (16 * 16 * 2 + 16 * 8 * 2)
    assert shown["precision_by_kind"]["feed-forward"] == {"F32": 3 * 3 * 16 * 24}
    assert shown["memory_bytes"]["32 tokens"] == shown["parameters"] * 4 + 32 * 2 * 3 * 8 * 4
    assert shown["made_from"] == ["a (unknown)", "b (unknown)"]
    assert main(["models", "show", str(tmp_path / "m")]) == 0
    assert "feed-forward" in capsys.readouterr().out


def test_a_copy_keeps_the_precision(tmp_path: Path) -> None:
    weights = save(tmp_path / "a", 1)
    for dtype in ("bfloat16", "float16"):
        save_model(tmp_path / dtype, ARCH, weights, tokenizer(), None, generation={}, lineage={}, dtype=dtype)
        assert native_dtype(open_model(str(tmp_path / dtype))) == dtype
