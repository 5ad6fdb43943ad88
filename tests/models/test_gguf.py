"""GGUF: what is sound is read, what is hostile is a FormatError, quickly."""

import dataclasses
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladderlm.errors import FormatError, LadderError, NotFound
from ladderlm.models import open_model
from ladderlm.models.families.ggufs import pairs_from_halves
from ladderlm.models.gguf import read_gguf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_weights_come_back_in_the_hugging_face_convention(tmp_path: Path) -> None:
    wanted = tiny.write_gguf(tmp_path / "tiny.gguf")
    files = open_model(str(tmp_path / "tiny.gguf"))
    assert files.arch == tiny.ARCH
    assert files.weights.names() == list(wanted)
    assert files.arch.parameters == sum(v.size for v in wanted.values())
    for name, value in wanted.items():
        assert np.array_equal(files.weights.float32(name), value), name
        blocks = files.weights.blocks(name)
        assert (blocks is None) == (value.ndim == 1)
        if blocks is not None:
            assert blocks.kind == "F32"
            assert np.array_equal(blocks.float32(), value), name


def test_metadata_and_special_tokens(model: Path) -> None:
    files = open_model(str(model))
    assert files.name == "tiny"
    assert files.lineage["licence"] == "cc-by-nc-4.0"
    assert files.tokenizer.eos_id == 259
    assert files.tokenizer.stop_ids == (259, 257)
    assert files.tokenizer.document_start_id == 257
    assert len(files.hash) == 64


def test_interleaving_rotates_like_halves() -> None:
    """The permutation is right if pairs rotated in GGUF's order equal halves rotated in ours."""
    dim, angle = 8, np.linspace(0.1, 0.8, 4)
    order = pairs_from_halves(dataclasses.replace(tiny.ARCH, heads=1, kv_heads=1), "self_attn.q_proj")
    halves = np.random.default_rng(0).normal(size=dim)
    pairs = halves[order]
    a, b = pairs[0::2], pairs[1::2]
    turned = np.empty(dim)
    turned[0::2], turned[1::2] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    x, y = halves[:4], halves[4:]
    ours = np.concatenate([x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)])
    assert np.allclose(turned, ours[order])


def small(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "meta": {"general.architecture": "llama"},
        "entries": [("a", (32,), 0, 0), ("b", (32, 2), 0, 128)],
        "data": bytes(128 + 256),
    }
    return tiny.gguf_bytes(**{**parts, **changes})


def test_a_sound_small_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(small())
    file = read_gguf(tmp_path / "x.gguf")
    assert file.tensors["b"].shape == (2, 32)
    assert file.data("b").shape == (2, 128)


ONE_KEY = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tiny._string("k")
HOSTILE = {
    "empty": b"",
    "no magic": b"GGML" + small()[4:],
    "version": b"GGUF" + struct.pack("<I", 9) + small()[8:],
    "big endian": b"GGUF" + struct.pack(">I", 3) + small()[8:],
    "truncated in the header": small()[:40],
    "truncated in the data": small()[:-1],
    "absurd tensor count": small()[:8] + struct.pack("<Q", 2**60) + small()[16:],
    "many tensors": small()[:8] + struct.pack("<Q", 60000) + small()[16:],
    "absurd key count": small()[:16] + struct.pack("<Q", 2**60) + small()[24:],
    "absurd string": small()[:24] + struct.pack("<Q", 2**62) + small()[32:],
    "overlapping tensors": small(entries=[("a", (32,), 0, 0), ("b", (32, 2), 0, 64)]),
    "out of range": small(entries=[("a", (32,), 0, 0), ("b", (32, 2), 0, 2**40)]),
    "offset that wraps": small(entries=[("a", (32,), 0, 2**64 - 32)]),
    "unaligned": small(entries=[("a", (32,), 0, 7)]),
    "unknown kind": small(entries=[("a", (32,), 99, 0)]),
    "zero extent": small(entries=[("a", (0,), 0, 0)]),
    "huge extents": small(entries=[("a", (2**62, 2**62), 0, 0)]),
    "too many dimensions": small(entries=[("a", (2, 2, 2, 2, 2), 0, 0)]),
    "torn block": small(entries=[("a", (33,), 2, 0)]),
    "same name twice": small(entries=[("a", (32,), 0, 0), ("a", (32,), 0, 128)]),
    "alignment zero": small(meta={"general.alignment": 0}),
    "alignment odd": small(meta={"general.alignment": 33}),
    "alignment text": small(meta={"general.alignment": "x"}),
    "array longer than file": ONE_KEY + struct.pack("<IIQ", 9, 8, 2**61),
    "nested array": ONE_KEY + struct.pack("<IIQ", 9, 9, 2**20),
    "many empty strings": ONE_KEY + struct.pack("<IIQ", 9, 8, 2**22) + bytes(2**25),
}  # fmt: skip


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_files_are_refused_within_a_second(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.gguf").write_bytes(HOSTILE[what])
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert time.process_time() - start < 1
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_hostile_architecture_is_refused(tmp_path: Path) -> None:
    meta = {**tiny.metadata(), "llama.block_count": 2**31 - 1}
    (tmp_path / "x.gguf").write_bytes(tiny.gguf_bytes(meta, [], b""))
    with pytest.raises(FormatError, match="absurd"):
        open_model(str(tmp_path / "x.gguf"))


def test_another_architecture_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny.gguf_bytes({"general.architecture": "mamba"}, [], b""))
    with pytest.raises(FormatError, match=r"llama.*url#model"):
        open_model(str(tmp_path / "x.gguf"))


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny.gguf_bytes(tiny.metadata(), [], b""))
    with pytest.raises(FormatError, match="missing"):
        open_model(str(tmp_path / "x.gguf"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_gguf(tmp_path / "none.gguf")


@settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_makes_another_error(model: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Flipped bytes and cut ends: either it still opens, or a LadderError says why not."""
    content = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "x.gguf").write_bytes(content)
    try:
        open_model(str(tmp_path / "x.gguf"))
    except LadderError as error:
        assert "\n" not in str(error)  # noqa: PT017
