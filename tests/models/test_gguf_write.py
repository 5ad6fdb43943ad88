"""Files we write are read by our own reader and by the gguf package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladderlm.errors import UsageError
from ladderlm.models.encode import encode
from ladderlm.models.gguf import read_gguf
from ladderlm.models.gguf_write import Entry, write_gguf
from ladderlm.models.quants import dequantise

META: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "Grüße\n",
    "empty": "",
    "yes": True,
    "count": 3,
    "negative": -3,
    "large": 2**40,
    "share": 0.25,
    "small": np.uint8(7),
    "wide": np.float64(0.1),
    "words": ["a", "", "ü"],
    "numbers": [1, -2, 3],
    "long numbers": [2**40],
    "shares": [0.5, 1],
    "flags": [True, False],
    "bytes": np.arange(5, dtype=np.int8),
    "nothing": [],
}


def entries(values: dict[str, np.ndarray], kind: str) -> list[Entry]:
    return [
        Entry(name, kind, value.shape, lambda v=value: [encode(kind, v.reshape(-1, v.shape[-1]))])
        for name, value in values.items()
    ]


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"a": (96,), "b": (3, 64), "c": (2, 5, 32), "d": (1, 32)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_comes_back(tmp_path: Path, kind: str, alignment: int | None) -> None:
    meta = META if alignment is None else {**META, "general.alignment": alignment}
    values = tensors()
    write_gguf(tmp_path / "x.gguf", meta, entries(values, kind))
    file = read_gguf(tmp_path / "x.gguf")
    assert list(file.meta) == list(meta)
    for key, value in meta.items():
        found = file.meta[key]
        assert np.array_equal(found, value) if isinstance(found, np.ndarray) else found == value, key
    assert list(file.tensors) == list(values)
    for name, value in values.items():
        assert file.tensors[name].shape == value.shape
        assert file.tensors[name].offset % (alignment or 32) == 0
        data = file.data(name)
        assert np.array_equal(data, encode(kind, value.reshape(-1, value.shape[-1]))), name
        assert np.allclose(dequantise(kind, data, value.shape[-1]).reshape(value.shape), value, atol=0.05)


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    values = tensors()
    meta = {key: value for key, value in META.items() if key != "nothing"}
    write_gguf(tmp_path / "x.gguf", meta, entries(values, "Q8_0"))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    for key, value in meta.items():
        assert np.array_equal(reader.get_field(key).contents(), value), key
    types = {key: reader.get_field(key).types[-1].name for key in ("count", "negative", "large", "small", "wide")}
    assert types == {"count": "UINT32", "negative": "INT32", "large": "UINT64", "small": "UINT8", "wide": "FLOAT64"}
    assert [t.name for t in reader.tensors] == list(values)
    for tensor in reader.tensors:
        back = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.allclose(back.reshape(values[tensor.name].shape), values[tensor.name], atol=0.05)


def test_what_cannot_be_held_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for bad in (None, {"a": 1}, [[1, 2]], 2**70, ["a", 1], [True, 1], np.zeros((2, 2)), 1j):
        with pytest.raises(UsageError, match="'k'"):
            write_gguf(path, {"k": bad}, [])
    for alignment in (0, 24, "32"):
        with pytest.raises(UsageError, match="alignment"):
            write_gguf(path, {"general.alignment": alignment}, [])
    entry = entries({"a": np.zeros(32, np.float32)}, "F32")[0]
    with pytest.raises(UsageError, match="one name"):
        write_gguf(path, {}, [entry, entry])
    with pytest.raises(UsageError, match="bytes"):
        write_gguf(path, {}, [Entry("a", "F32", (64,), entry.data)])
    assert not list(tmp_path.iterdir())
