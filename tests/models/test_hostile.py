"""Hostile files of every kind we open: an error within a second and 200 MB, never a crash."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladderlm.errors import FormatError, LadderError, NotFound, StorageError
from ladderlm.models import open_model, save_model
from ladderlm.models.bounded import MAX_JSON, read_json
from ladderlm.models.folder import eager, read_shards
from ladderlm.models.safetensors import read_safetensors

# Reads argv[2] with `argv[1]`, allowed 200 MB beyond what is mapped and what the imports took.
CHILD = """
import os, resource, sys, time
from pathlib import Path
from ladderlm.errors import LadderError
from ladderlm.models.bounded import read_json
from ladderlm.models.folder import eager, read_shards
from ladderlm.models.gguf import read_gguf
from ladderlm.models.safetensors import read_safetensors

for line in sys.stdin.read().splitlines():
    reader, path = line.split(" ", 1)
    size = sum(f.stat().st_size for f in Path(path).parent.iterdir())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + size + 200 * 2**20, resource.RLIM_INFINITY))
    start = time.process_time()
    try:
        globals()[reader](Path(path))
        said = "read"
    except LadderError as error:
        said = f"{type(error).__name__} {len(str(error).splitlines())} {len(str(error))}"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(f"{time.process_time() - start:.2f} {said}")
"""


def st_bytes(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: Any = (2, 3), offsets: Any = (0, 24), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header longer than the file": st_bytes({"a": entry()}, bytes(24), length=10**6),
    "absurd header length": st_bytes({"a": entry()}, bytes(24), length=2**63),
    "not JSON": st_bytes(b"{'a'}", bytes(24)),
    "not UTF-8": st_bytes(b'{"\xff": 1}', bytes(24)),
    "a list": st_bytes([1, 2]),
    "deep": st_bytes(b"[" * 100_000),
    "deep objects": st_bytes(b'{"a":' * 100_000),
    "entry is no object": st_bytes({"a": "F32"}, bytes(24)),
    "entry lacks a field": st_bytes({"a": {"dtype": "F32"}}, bytes(24)),
    "cut off": st_bytes({"a": entry()}, bytes(23)),
    "bytes too many": st_bytes({"a": entry()}, bytes(25)),
    "a hole": st_bytes({"a": entry(offsets=(4, 28))}, bytes(28)),
    "overlapping": st_bytes({"a": entry(), "b": entry(offsets=(12, 36))}, bytes(36)),
    "backwards": st_bytes({"a": entry(offsets=(24, 0))}, bytes(24)),
    "beyond the end": st_bytes({"a": entry(shape=[2**40], offsets=(0, 2**42))}, bytes(24)),
    "negative": st_bytes({"a": entry(shape=[-2, -3])}, bytes(24)),
    "not whole": st_bytes({"a": entry(shape=[2.0, 3.0])}, bytes(24)),
    "truth values": st_bytes({"a": entry(shape=[True, 6])}, bytes(24)),
    "nested shape": st_bytes({"a": entry(shape=[[2], 3])}, bytes(24)),
    "text shape": st_bytes({"a": entry(shape="23")}, bytes(24)),
    "shape that wraps": st_bytes({"a": entry(shape=[2**32, 2**32], offsets=(0, 0))}),
    "ten thousand dimensions": st_bytes({"a": entry(shape=[2**47] * 10**4)}, bytes(24)),
    "huge number": st_bytes(b'{"a": ' + b"9" * 10**6 + b"}"),
    "unknown type": st_bytes({"a": entry(dtype="F31")}, bytes(24)),
    "type is a list": st_bytes({"a": entry(dtype=[])}, bytes(24)),
    "three offsets": st_bytes({"a": entry(offsets=(0, 24, 24))}, bytes(24)),
    "offsets are an object": st_bytes({"a": entry(offsets={"0": 0, "24": 24})}, bytes(24)),
    "a name twice": st_bytes(b"{%(e)s, %(e)s}" % {b"e": b'"a": ' + json.dumps(entry()).encode()}, bytes(24)),
    "a field twice": st_bytes(b'{"a": {"dtype": "F32", "shape": [], "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
    "long strange name": st_bytes({"\n" * 10**5: entry(dtype="x")}, bytes(24)),
    "millions of lists": st_bytes(b"[" + b"[]," * (MAX_JSON // 3 - 1) + b"[]]"),
    "millions of words": st_bytes(b"[" + b'"ab",' * (MAX_JSON // 5 - 1) + b"0]"),
    "millions of keys": st_bytes(b"{" + b",".join(b'"%x":0' % i for i in range(MAX_JSON // 10)) + b"}"),
    "larger than any header": st_bytes(b" " * (MAX_JSON + 1)),
}  # fmt: skip


def sparse(head: bytes, size: int) -> Callable[[Path], None]:
    """Writes a file of `size` bytes that begins with `head` and takes no room."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(head)
            file.truncate(size)

    return write


GGUF_KEY = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + tiny._string("k")
WORDS = b"".join(tiny._string(f"{i:020x}\U0001f600") for i in range(2**20 - 2))
HEAVY: dict[str, tuple[str, Callable[[Path], None]]] = {
    "GGUF: a string of a gigabyte": ("read_gguf", sparse(GGUF_KEY + struct.pack("<IQ", 8, 10**9), 2 * 10**9)),
    "GGUF: 10^9 strings": ("read_gguf", sparse(GGUF_KEY + struct.pack("<IIQ", 9, 8, 10**9), 9 * 10**9)),
    "GGUF: 10^9 numbers": ("read_gguf", sparse(GGUF_KEY + struct.pack("<IIQ", 9, 0, 10**9), 2 * 10**9)),
    "GGUF: 10^9 arrays": ("read_gguf", sparse(GGUF_KEY + struct.pack("<IIQ", 9, 9, 10**9), 2 * 10**9)),
    "GGUF: a million words": (
        "read_gguf",
        lambda path: path.write_bytes(GGUF_KEY + struct.pack("<IIQ", 9, 8, 2**20 - 2) + WORDS) and None,
    ),
    "GGUF: a tensor of 10^12": (
        "read_gguf",
        lambda path: path.write_bytes(tiny.gguf_bytes({}, [("a", (10**6, 10**6), 0, 0)], b"")) and None,
    ),
    "safetensors: header of a gigabyte": ("read_safetensors", sparse(struct.pack("<Q", 10**9), 2 * 10**9)),
    "JSON of two gigabytes": ("read_json", sparse(b"[", 2 * 10**9)),
    **{
        f"safetensors: {name}": ("read_safetensors", lambda path, data=data: path.write_bytes(data) and None)
        for name, data in SAFETENSORS.items()
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a child process as Linux does")
def test_no_hostile_file_takes_a_second_or_200_mb(tmp_path: Path) -> None:
    lines = []
    for i, (reader, write) in enumerate(HEAVY.values()):
        (tmp_path / str(i)).mkdir()
        write(tmp_path / str(i) / "x")
        lines.append(f"{reader} {tmp_path / str(i) / 'x'}")
    done = subprocess.run([sys.executable, "-c", CHILD], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, said in zip(HEAVY, done.stdout.splitlines(), strict=True):
        seconds, outcome, *size = said.split()
        assert float(seconds) < (1 if outcome != "read" else 5), (
            f"{name}: {said}"
        )  # a large sound file may take its time
        allowed = ("read",) if name in ("GGUF: 10^9 numbers", "GGUF: a million words") else ("FormatError",)
        assert outcome in allowed, f"{name}: {said}"
        assert not size or (size[0] == "1" and int(size[1]) < 400), f"{name}: {said}"


def write_st(path: Path, names: tuple[str, ...] = ("a", "b")) -> bytes:
    header = {n: entry(offsets=(24 * i, 24 * i + 24)) for i, n in enumerate(names)}
    data = st_bytes({"__metadata__": {"format": "pt"}, **header}, np.arange(6 * len(names), dtype="<f4").tobytes())
    path.write_bytes(data)
    return data


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    write_st(tmp_path / "x")
    tensors = read_safetensors(tmp_path / "x")
    assert list(tensors) == ["a", "b"]
    assert np.array_equal(tensors["b"].array(), np.arange(6, 12, dtype=np.float32).reshape(2, 3))


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_safetensors_are_read_or_a_ladder_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write_st(tmp_path / "x"))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "x").write_bytes(content)
    try:
        for tensor in read_safetensors(tmp_path / "x").values():
            tensor.array()
    except LadderError as error:
        assert "\n" not in str(error)  # noqa: PT017


INDEX = [
    None, 3, "x", [], {"a": 1}, {"a": None}, {"a": ["model.safetensors"]}, {"a": "../secret"}, {"a": "/etc/passwd"},
    {"a": "."}, {"a": ".."}, {"a": ""}, {"a": "sub/x.safetensors"}, {"a": "..\\secret"}, {"a": "x\0.safetensors"},
    {"a": "x" * 5000}, {"a": "missing.safetensors"}, {"a": "\n\n"},
]  # fmt: skip


@pytest.mark.parametrize("weight_map", INDEX, ids=lambda m: repr(m)[:30])
def test_a_shard_index_reaches_nothing_outside_its_folder(tmp_path: Path, weight_map: Any) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for outside in (tmp_path / "secret", folder / "sub" / "x.safetensors"):
        write_st(outside)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises((FormatError, NotFound, StorageError)) as caught:
        read_shards(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["[1]", "3", "null", "{", "{}", '{"weight_map": ' + "[" * 10**5])
def test_an_unsound_shard_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError):
        read_shards(tmp_path)


def test_each_tensor_comes_from_the_shard_the_index_names(tmp_path: Path) -> None:
    write_st(tmp_path / "1.safetensors", ("x", "a"))
    write_st(tmp_path / "2.safetensors", ("a", "b"))
    where = {"a": "1.safetensors", "b": "2.safetensors", "x": "1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    tensors = read_shards(tmp_path)
    assert tensors["a"].array()[0, 0] == 6
    assert tensors.keys() == where.keys()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(NotFound):
            read_json(path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError):
        read_json(tmp_path / "loop")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound folder."""
    source = tmp_path_factory.mktemp("sound")
    tiny.write_gguf(source / "tiny.gguf")
    files = open_model(str(source / "tiny.gguf"))
    save_model(
        source / "folder", files.arch, eager(files.weights), files.tokenizer, files.template, generation={}, lineage={}
    )
    return source / "folder"


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.just({}), st.just({"rope_type": "yarn"}), st.just({"content": 3}),
)  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json", "ladderlm.json"])
@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_a_config_is_read_or_a_ladder_error(
    model: Path, tmp_path: Path, file: str, data: st.DataObject
) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    config = json.loads((model / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        config[data.draw(st.sampled_from([*sorted(config), "rope_scaling", "sliding_window", "head_dim"]))] = data.draw(
            VALUES
        )
    (tmp_path / file).write_text(json.dumps(config))
    try:
        open_model(str(tmp_path))
    except LadderError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_tokenizers_are_read_or_a_ladder_error(model: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    content = bytearray((model / "tokenizer.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "tokenizer.json").write_bytes(content)
    try:
        open_model(str(tmp_path))
    except LadderError as error:
        assert "\n" not in str(error)  # noqa: PT017
