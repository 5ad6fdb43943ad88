"""True pairs pass; every way of spoiling a form fails, and the words say which."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import forms
import numpy as np
import pytest

from ladderlm.cli.main import main
from ladderlm.convert import gguf, quantise
from ladderlm.convert.compare.verdict import Check, Verdict
from ladderlm.convert.verify import verify
from ladderlm.errors import NotFound, UsageError
from ladderlm.models import open_model
from ladderlm.models.folder import eager, save_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return forms.write(tmp_path / "source")


def failure(verdict: Verdict, name: str) -> Check:
    """The failed check of that name; it says what differs and what to do."""
    assert not verdict.same
    found = {check.name: check for check in verdict.checks if check.status == "failed"}
    assert name in found, verdict.words
    assert found[name].words
    assert found[name].cure
    return found[name]


def holds(a: Path | str, b: Path | str) -> Verdict:
    verdict = verify(str(a), str(b))
    assert verdict.same, verdict.words
    assert {check.status for check in verdict.checks} == {"passed"}
    return verdict


# --- True pairs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_gguf_is_the_folder_it_was_made_from(source: Path, kind: str) -> None:
    file = gguf.write(open_model(str(source)), source.with_name("m.gguf"), kind)
    assert file.is_file()
    holds(source, file)
    holds(file, source)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_the_rounding_of_thirty_two(source: Path, dtype: str) -> None:
    rounded = forms.write(source.with_name(dtype), dtype=dtype)
    words = next(c.words for c in holds(source, rounded).checks if c.name == "weights")
    assert ("F16" if dtype == "float16" else "BF16") in words


def test_q4_k(tmp_path: Path) -> None:
    wide = forms.write(tmp_path / "wide", dataclasses.replace(forms.SHAPE, dim=256, hidden=256, heads=16, layers=2))
    holds(wide, gguf.write(open_model(str(wide)), tmp_path / "m.gguf", "Q4_K"))


def test_a_merged_folder_is_base_and_adapter(source: Path) -> None:
    adapter = forms.adapter(source.with_name("adapter"), source)
    both = open_model(f"{source}+{adapter}")
    for dtype in ("float32", "float16"):
        merged = source.with_name(f"merged-{dtype}")
        save_model(merged, both.arch, eager(both.weights), both.tokenizer, both.template,
                   generation={}, lineage={}, dtype=dtype)  # fmt: skip
        holds(f"{source}+{adapter}", merged)
        wrong = failure(verify(str(source), str(merged)), "weights")
        assert "6 of" in wrong.words
        assert "q_proj" in wrong.words


@pytest.mark.parametrize(("bits", "method"), [(8, "rtn"), (4, "rtn"), (4, "gptq")])
def test_an_int_folder_is_its_source(source: Path, bits: int, method: str) -> None:
    if method == "gptq":
        pytest.importorskip("torch")
    packed = source.with_name("packed")
    quantise.run(quantise.QuantiseConfig(str(source), str(packed), bits=bits, method=method, tokens=256))
    words = next(c.words for c in holds(source, packed).checks if c.name == "weights")
    assert ("calibrated" in words) == (method == "gptq")


def test_two_quantised_forms_of_one_source(source: Path) -> None:
    files = open_model(str(source))
    forms_ = [gguf.write(files, source.with_name(f"{kind}.gguf"), kind) for kind in ("Q8_0", "Q4_0")]
    words = next(c.words for c in holds(*forms_).checks if c.name == "weights")
    assert "Q8_0" in words


# --- Spoiled forms ------------------------------------------------------------------------------------------------


def changed_template(folder: Path) -> None:
    template = forms.TEMPLATE.replace("+ '\n' +", "+ ' ' +")
    assert template != forms.TEMPLATE
    forms.edit_json(folder / "tokenizer_config.json", chat_template=template)


def lost_template(folder: Path) -> None:
    forms.edit_json(folder / "tokenizer_config.json", chat_template=None)


def missing_eos(folder: Path) -> None:
    forms.edit_json(folder / "tokenizer_config.json", eos_token=None)
    forms.edit_json(folder / "generation_config.json", eos_token_id=None)


def special_off_by_one(folder: Path) -> None:
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    forms.edit_json(folder / "generation_config.json", eos_token_id=[i - 1 for i in ends])


def adds_bos(folder: Path) -> None:
    forms.edit_json(folder / "tokenizer_config.json", add_bos_token=True)


def wrong_tokenizer(folder: Path) -> None:
    other = forms.tokenizer(("o u", "i s", "t e", "e r"))
    (folder / "tokenizer.json").write_text(other.to_json())


def other_rope(folder: Path) -> None:
    def change(name: str, values: np.ndarray) -> np.ndarray:
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return values
        half = forms.SHAPE.head_dim // 2
        return values.reshape(-1, 2, half, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    forms.edit_tensors(folder, change)


def one(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: forms.edit_tensors(folder, lambda n, v: change(v) if n == name else v)


def noise_on_a_layer(folder: Path) -> None:
    random = np.random.default_rng(3)

    def change(name: str, values: np.ndarray) -> np.ndarray:
        if not name.startswith("model.layers.1."):
            return values
        size = 0.01 * np.sqrt(np.mean(values**2))
        return values + size * random.normal(size=values.shape).astype(np.float32)

    forms.edit_tensors(folder, change)


def swapped_rows(folder: Path) -> None:
    order = np.arange(forms.SHAPE.hidden)
    order[[3, 50]] = 50, 3
    one("model.layers.0.mlp.up_proj.weight", lambda v: v[order])(folder)


def theta(folder: Path) -> None:
    forms.edit_json(folder / "config.json", rope_theta=500000.0, rope_parameters=None)


def epsilon(folder: Path) -> None:
    forms.edit_json(folder / "config.json", rms_norm_eps=1e-6)


O_PROJ = "model.layers.1.self_attn.o_proj.weight"
SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "changed template": (changed_template, "template", "single turn"),
    "no template": (lost_template, "template", "B has no chat template"),
    "missing EOS": (missing_eos, "beginning and end", "B names no end-of-text token"),
    "special token off by one": (special_off_by_one, "beginning and end", "ends an answer"),
    "BOS added": (adds_bos, "beginning and end", "puts '<|endoftext|>' (id 260) before"),
    "wrong tokenizer": (wrong_tokenizer, "tokenizer", "The quick brown fox"),
    "rope convention": (other_rope, "weights", "other rotary convention"),
    "transposed": (one(O_PROJ, lambda v: v.T), "weights", f"{O_PROJ} is transposed"),
    "noise of 1 %": (noise_on_a_layer, "weights", "model.layers.1."),
    "rows swapped": (swapped_rows, "weights", "rows 3, 50 swapped"),
    "scaled": (one("model.layers.0.mlp.down_proj.weight", lambda v: v * 1.1), "weights", "1.1 times as large"),
    "norm offset": (one("model.norm.weight", lambda v: v - 1), "weights", "-1 off"),
    "zeros": (one(O_PROJ, np.zeros_like), "weights", "all zeros in B"),
    "not a number": (one(O_PROJ, lambda v: v * np.nan), "weights", "undefined"),
    "rope base": (theta, "architecture", "rope_theta) is 10000 in A, 500000 in B"),
    "norm epsilon": (epsilon, "architecture", "norm_eps) is 1e-05 in A, 1e-06 in B"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_folder_fails(source: Path, what: str) -> None:
    spoil, check, words = SPOILED[what]
    other = Path(shutil.copytree(source, source.with_name("other")))
    spoil(other)
    assert words in failure(verify(str(source), str(other)), check).words


def of_gguf() -> list[tuple[str, str]]:
    """Everything in Q4_0, and what is in the weights in the other kinds too."""
    healed = ("missing EOS", "not a number")  # the reader finds the end by its name, the writer refuses NaN
    return [(what, kind) for what, (_, check, _) in SPOILED.items() if what not in healed
            for kind in (("Q4_0", "Q8_0", "F16") if check == "weights" else ("Q4_0",))]  # fmt: skip


@pytest.mark.parametrize(("what", "kind"), of_gguf())
def test_a_spoiled_gguf_fails(source: Path, what: str, kind: str) -> None:
    spoil, check, words = SPOILED[what]
    other = Path(shutil.copytree(source, source.with_name("other")))
    spoil(other)
    file = gguf.write(open_model(str(other)), source.with_name("m.gguf"), kind)
    found = failure(verify(str(source), str(file)), check).words
    if what != "special token off by one":  # a GGUF names one end alone
        assert words in found


def test_a_gguf_without_eos_fails(source: Path) -> None:
    file = gguf.write(open_model(str(source)), source.with_name("m.gguf"), "Q8_0")
    data = file.read_bytes()
    assert data.count(b"tokenizer.ggml.eos_token_id") == 1
    file.write_bytes(data.replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.was_token_id"))
    found = failure(verify(str(source), str(file)), "beginning and end").words
    assert "end-of-text token is '<|im_end|>' (id 262) in A, none in B" in found


@pytest.mark.parametrize("what", ["noise of 1 %", "transposed", "rope convention", "rows swapped"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_spoiled_int_folder_fails(source: Path, what: str, bits: int) -> None:
    spoil, check, words = SPOILED[what]
    other = Path(shutil.copytree(source, source.with_name("other")))
    spoil(other)
    packed = source.with_name("packed")
    quantise.run(quantise.QuantiseConfig(str(other), str(packed), bits=bits, method="rtn"))
    assert words in failure(verify(str(source), str(packed)), check).words


def test_noise_on_what_was_quantised_fails(source: Path) -> None:
    """Noise after, not before: of 16 bits that were read back and changed."""
    file = gguf.write(open_model(str(source)), source.with_name("m.gguf"), "Q4_0")
    files = open_model(str(file))
    back = source.with_name("back")
    save_model(back, files.arch, eager(files.weights), files.tokenizer, files.template, generation={}, lineage={})
    holds(file, back)
    noise_on_a_layer(back)
    failure(verify(str(file), str(back)), "weights")


@pytest.mark.parametrize("left", [0.5, 0.999, 0.0005])
def test_a_truncated_shard_fails(source: Path, left: float) -> None:
    other = Path(shutil.copytree(source, source.with_name("other")))
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    found = failure(verify(str(source), str(other)), "files")
    assert "B cannot be read" in found.words
    assert "model.safetensors" in found.words


def test_a_truncated_gguf_fails(source: Path) -> None:
    file = gguf.write(open_model(str(source)), source.with_name("m.gguf"), "Q8_0")
    file.write_bytes(file.read_bytes()[:-1000])
    failure(verify(str(source), str(file)), "files")


def test_another_model_fails(source: Path) -> None:
    other = forms.write(source.with_name("other"), seed=1)
    assert "holds other numbers altogether" in failure(verify(str(source), str(other)), "weights").words
    deeper = forms.write(source.with_name("deeper"), dataclasses.replace(forms.SHAPE, layers=4))
    assert "layers is 3 in A, 4 in B" in failure(verify(str(source), str(deeper)), "architecture").words
    shared = forms.write(source.with_name("shared"), dataclasses.replace(forms.SHAPE, kv_heads=1))
    assert "kv_heads is" in failure(verify(str(source), str(shared)), "architecture").words


def test_coarser_than_the_format_needs_fails(source: Path) -> None:
    """Scales three times too large hold every weight in its cell all the same."""
    packed = source.with_name("packed")
    quantise.run(quantise.QuantiseConfig(str(source), str(packed), bits=8, method="rtn"))
    rough = {n: np.round(v / s) * s if v.ndim == 2 else v for n, v in forms.tensors().items()
             for s in [3 * np.abs(v).max(-1, keepdims=True) / 127]}  # fmt: skip
    files = open_model(str(source))
    other = source.with_name("other")
    save_model(other, files.arch, rough, files.tokenizer, files.template, generation={}, lineage={})
    failure(verify(str(source), str(other)), "weights")


# --- The door -----------------------------------------------------------------------------------------------------


def test_what_names_nothing_is_an_error(source: Path) -> None:
    with pytest.raises(NotFound):
        verify(str(source), str(source.with_name("nowhere")))
    with pytest.raises(UsageError):
        verify("http://a#b", "http://c#d")


def test_the_command(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(source, source.with_name("other")))
    assert main(["verify", str(source), str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same model"
    special_off_by_one(other)
    assert main(["verify", str(source), str(other), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["same"] is False
    assert [c["name"] for c in told["checks"] if c["status"] == "failed"] == ["beginning and end"]
    assert main(["verify", str(source), str(other)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "NOT the same model: beginning and end"
