"""Exports as files: what they say beside the weights, fallbacks, refusals; every kind read reaches the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from ladderlm import engine
from ladderlm.convert import gguf
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.errors import StorageError, UsageError
from ladderlm.models import open_model
from ladderlm.models.gguf import read_gguf
from ladderlm.models.gguf_write import write_gguf
from ladderlm.models.quants import KINDS, row_bytes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_a_file_tells_what_the_model_does(model: Path, tmp_path: Path) -> None:
    files = open_model(str(model))
    back = open_model(str(gguf.write(files, tmp_path / "out" / "x.gguf", "F32")))
    assert back.arch == files.arch
    assert back.tokenizer.special == files.tokenizer.special
    assert back.tokenizer.encode("he said: hello") == files.tokenizer.encode("he said: hello")
    assert back.template is not None
    assert files.template is not None
    assert back.template.source == files.template.source
    assert back.lineage == json.loads(json.dumps(dict(files.lineage)))
    assert read_gguf(back.path).meta["general.license"] == "cc-by-nc-4.0"
    for name in files.weights.names():
        assert np.array_equal(back.weights.float32(name), files.weights.float32(name)), name


def test_blocks_of_the_wanted_kind_are_copied(model: Path, tmp_path: Path) -> None:
    first = open_model(str(gguf.write(open_model(str(model)), tmp_path / "1.gguf", "Q8_0")))
    second = open_model(str(gguf.write(first, tmp_path / "2.gguf", "Q8_0")))
    for name in first.weights.names():
        assert np.array_equal(first.weights.float32(name), second.weights.float32(name)), name


def test_rows_that_do_not_divide_take_the_next_better_kind(model: Path) -> None:
    chosen = gguf.kinds(open_model(str(model)).arch, "Q4_K")
    assert chosen["blk.0.ffn_down.weight"] == "Q5_0"  # 64 columns
    assert chosen["token_embd.weight"] == chosen["output.weight"] == "Q8_0"
    assert chosen["blk.0.attn_norm.weight"] == "F32"


def test_refusals(model: Path, tmp_path: Path) -> None:
    files = open_model(str(model))
    with pytest.raises(UsageError, match="did you mean"):
        gguf.write(files, tmp_path / "x.gguf", "Q4_1")
    with pytest.raises(StorageError, match="exists"):
        gguf.write(files, model)
    assert gguf.write(files, tmp_path / "x.gguf") == gguf.write(files, tmp_path / "x.gguf", replace=True)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"])
def test_kinds_that_are_only_read_reach_the_engine(kind: str, tmp_path: Path) -> None:
    """Random blocks of the kind in a whole file: the packed engine agrees with the plain reference."""
    import dataclasses

    arch = dataclasses.replace(tiny.ARCH, dim=256, heads=4, head_dim=64, hidden=256)
    tiny.write_gguf(tmp_path / "f32.gguf", arch)
    source = read_gguf(tmp_path / "f32.gguf")
    random = np.random.default_rng(0)

    def entry(name: str) -> gguf.Entry:
        tensor = source.tensors[name]
        if len(tensor.shape) == 1:
            return gguf.Entry(name, "F32", tensor.shape, lambda: [source.data(name)])
        rows, cols = tensor.shape
        data = random.integers(0, 256, (rows, row_bytes(kind, cols)), dtype=np.uint8)
        blocks = data.reshape(-1, KINDS[kind].bytes)
        for at, size in SCALES[kind].items():
            blocks[:, at : at + 2] = np.full((len(blocks), 1), size, "<f2").view(np.uint8)
        return gguf.Entry(name, kind, tensor.shape, lambda: [data])

    write_gguf(tmp_path / "x.gguf", source.meta, [entry(name) for name in source.tensors])
    files = open_model(str(tmp_path / "x.gguf"))
    ids = [1, 50, 200, 7, 7, 31]
    expected = ReferenceDecoder(files.arch, files.weights).logits(ids)
    with engine.load(files, exact=True) as model:
        assert np.abs(model.logits(ids) - expected).max() < 1e-4 * np.abs(expected).max()


SCALES = {"Q2_K": {80: 0.005, 82: 0.005}, "Q3_K": {108: 0.001}, "IQ4_NL": {0: 0.001}, "IQ4_XS": {0: 0.0001}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_K"])
def test_llama_cpp_makes_sense_of_the_default_model(kind: str, default_model: str, tmp_path: Path) -> None:
    from llama_cpp import LlamaCpp

    files = open_model(default_model)
    path = gguf.write(files, tmp_path / "x.gguf", kind)
    ids = [files.tokenizer.document_start_id or 0, *files.tokenizer.encode("The capital of France is")]
    assert LlamaCpp(path, 256).text(ids, 8).startswith(" Paris")
