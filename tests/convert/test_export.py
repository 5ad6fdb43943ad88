"""Every export is verified, and a bad one never appears."""

from __future__ import annotations

import json
from pathlib import Path

import forms
import numpy as np
import pytest

from ladderlm.cli.main import main
from ladderlm.convert import export, gguf
from ladderlm.convert.export import ExportConfig, run
from ladderlm.convert.verify import verify
from ladderlm.errors import FormatError, StorageError, UsageError
from ladderlm.models import open_model
from ladderlm.models.quants import Bytes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return forms.write(tmp_path / "source")


@pytest.mark.parametrize(
    ("to", "precision", "name"),
    [("folder", "", "m"), ("folder", "bfloat16", "m"), ("gguf", "", "m.gguf"), ("gguf", "F32", "m.gguf"),
     ("bundle", "", "m"), ("int8", "", "m"), ("int4", "rtn", "m")],
)  # fmt: skip
def test_every_form(source: Path, to: str, precision: str, name: str) -> None:
    dest = source.with_name(name)
    result = run(ExportConfig(str(source), str(dest), to, precision))
    assert result.verdict.same
    assert result.precision == (precision or export.FORMS[to][0])
    assert result.bytes > 10_000
    assert verify(str(source), str(dest)).same
    assert sorted(p.name for p in source.parent.iterdir()) == sorted(["source", name])


def test_a_bundle_of_other_weights_or_another_program_fails(source: Path) -> None:
    dest = source.with_name("bundle")
    run(ExportConfig(str(source), str(dest), "bundle", "int8"))
    other = forms.write(source.with_name("other"))
    forms.edit_tensors(other, lambda name, values: values * 1.01 if "layers.1.mlp" in name else values)
    words = verify(str(other), str(dest)).words
    assert "other logits" in words or "other tokens" in words
    (dest / "run.py").write_text((dest / "run.py").read_text() + "\nprint()\n")
    assert "is not run" in verify(str(dest), str(source)).words


def test_an_adapter_is_merged_and_a_gguf_read_back(source: Path) -> None:
    adapter = forms.adapter(source.with_name("adapter"), source)
    both = f"{source}+{adapter}"
    merged = source.with_name("merged")
    run(ExportConfig(both, str(merged), "folder", "float32"))
    tensor = "model.layers.1.self_attn.q_proj.weight"
    wanted = open_model(both).weights.float32(tensor)
    np.testing.assert_array_equal(open_model(str(merged)).weights.float32(tensor), wanted)
    assert not np.array_equal(open_model(str(source)).weights.float32(tensor), wanted)
    lineage = open_model(str(merged)).lineage
    assert lineage["licence"] == "apache-2.0"
    assert "adapter" in lineage
    run(ExportConfig(str(merged), str(source.with_name("m.gguf")), "gguf", "Q4_0"))
    run(ExportConfig(str(source.with_name("m.gguf")), str(source.with_name("back")), "folder", "float16"))


def test_a_result_that_is_another_model_is_deleted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was at the destination stays, even when it was to be replaced."""
    dest = source.with_name("m.gguf")
    run(ExportConfig(str(source), str(dest), "gguf", "Q8_0"))
    before = dest.read_bytes()
    encode = gguf.encode

    def broken(kind: str, values: np.ndarray) -> Bytes:
        return encode(kind, np.ascontiguousarray(values.T) if values.shape[0] == values.shape[1] else values)

    monkeypatch.setattr(gguf, "encode", broken)
    with pytest.raises(FormatError, match=r"transposed.*deleted"):
        run(ExportConfig(str(source), str(dest), "gguf", "Q8_0", force=True))
    assert dest.read_bytes() == before
    assert sorted(p.name for p in source.parent.iterdir()) == ["m.gguf", "source"]


def test_what_is_there_is_kept(source: Path) -> None:
    dest = source.with_name("mine")
    dest.mkdir()
    (dest / "notes").write_text("dear")
    with pytest.raises(StorageError, match="--force"):
        run(ExportConfig(str(source), str(dest)))
    assert (dest / "notes").read_text() == "dear"
    run(ExportConfig(str(source), str(dest), force=True))
    assert sorted(p.name for p in source.parent.iterdir()) == ["mine", "source"]
    assert not (dest / "notes").exists()


@pytest.mark.parametrize("wrong", [{"to": "gguff"}, {"to": "gguf", "precision": "float16"}, {"to": "gguf"}])
def test_wrong_settings(source: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        run(ExportConfig(str(source), str(source.with_name("m")), **wrong))


def test_the_command(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = source.with_name("m.gguf")
    assert main(["export", str(source), "--to", "gguf", str(dest), "--precision", "F16"]) == 0
    assert capsys.readouterr().out.strip() == str(dest)
    assert main(["export", str(source), str(dest), "--to", "gguf", "--force", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["precision"] == "Q8_0"
    assert told["verdict"]["same"] is True
    assert main(["export", str(source), "--to", "gguf", str(dest)]) == 1
