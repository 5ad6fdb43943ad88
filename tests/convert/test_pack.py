"""Packing, unpacking what a stranger packed, and pushing to a hub."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import hub_server
import numpy as np
import pytest

from ladderlm.cli.main import main
from ladderlm.convert import pack as packing
from ladderlm.convert.pack import PackConfig, UnpackConfig, pack, unpack
from ladderlm.errors import AuthError, FormatError, NetworkError, NotFound, StorageError, UsageError
from ladderlm.models import hub, open_model, save_model
from ladderlm.models.arch import Architecture
from ladderlm.models.card import render_card
from ladderlm.text.specs import byte_alphabet
from ladderlm.text.tokenizer import Tokenizer

ARCH = Architecture(vocab_size=257, dim=8, layers=1, heads=1, kv_heads=1, head_dim=8, hidden=8, context_length=32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    meta = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*byte_alphabet(), "<|endoftext|>"], "tokenizer.ggml.token_type": [1] * 256 + [3],
        "tokenizer.ggml.merges": [], "tokenizer.ggml.eos_token_id": 256, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    weights = {n: np.ones(s, np.float32) for n, s in ARCH.tensor_shapes().items()}
    save_model(
        tmp_path / "tiny",
        ARCH,
        weights,
        Tokenizer.from_gguf(meta),
        None,
        generation={},
        lineage={"licence": "cc-by-nc-4.0"},
    )
    return tmp_path / "tiny"


def test_packed_and_unpacked_it_is_the_same_model(model: Path, tmp_path: Path) -> None:
    (model / "notes.bin").write_bytes(b"stays at home")
    (model / ".secret.json").write_text("{}")
    found = pack(PackConfig(str(model), str(tmp_path / "m.tar")))
    assert found.sha256 == hashlib.sha256((tmp_path / "m.tar").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "m.tar") as tar:
        names = tar.getnames()
    assert names[0] == "tiny/README.md"
    assert names[-1] == "tiny/SHA256SUMS"
    assert not {"tiny/notes.bin", "tiny/.secret.json"} & set(names)
    unpack(UnpackConfig(str(tmp_path / "m.tar"), str(tmp_path / "again")))
    assert open_model(str(tmp_path / "again")).hash == open_model(str(model)).hash
    with pytest.raises(StorageError, match="already exists"):
        unpack(UnpackConfig(str(tmp_path / "m.tar"), str(tmp_path / "again")))
    with pytest.raises(StorageError, match="already exists"):
        pack(PackConfig(str(model), str(tmp_path / "m.tar")))


def test_packing_twice_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    one = pack(PackConfig(str(model), str(tmp_path / "1.tar")))
    for file in model.iterdir():
        file.touch()
        file.chmod(0o600)
    assert pack(PackConfig(str(model), str(tmp_path / "2.tar"))).sha256 == one.sha256


def test_a_gguf_gets_a_card(default_model: str, tmp_path: Path) -> None:
    shared = packing.shared_files(open_model(default_model))
    assert len(shared) == 2
    assert "apache-2.0" in packing.card_of(shared)


Change = Callable[[tarfile.TarInfo], tarfile.TarInfo]


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (_entry("../evil.json"), "not the name"),
        (_entry("/etc/evil.json"), "not the name"),
        (_entry("tiny/../evil.json"), "not the name"),
        (_entry("tiny/deep/evil.json"), "not the name"),
        (_entry("other/evil.json"), "not the name"),
        (_entry("tiny/..json"), "not the name"),
        (_entry("tiny/a\nb.json"), "not the name"),
        (_entry("tiny/link.json", tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
        (_entry("tiny/hard.json", tarfile.LNKTYPE, "tiny/config.json"), "no plain file"),
        (_entry("tiny/pipe.json", tarfile.FIFOTYPE), "no plain file"),
        (_entry("tiny/device.json", tarfile.CHRTYPE), "no plain file"),
        (_entry("tiny/folder", tarfile.DIRTYPE), "no plain file"),
        (_entry("tiny/pytorch_model.bin"), "no data file"),
        (_entry("tiny/code.py"), "no data file"),
        (_entry("tiny/config.json"), "twice"),
        (_entry("tiny/extra.json"), "not what was packed"),
    ],
)
def test_a_hostile_tar_writes_nothing(model: Path, tmp_path: Path, entry: tarfile.TarInfo, message: str) -> None:
    pack(PackConfig(str(model), str(tmp_path / "m.tar")))
    with tarfile.open(tmp_path / "m.tar", "a") as tar:
        tar.addfile(entry, io.BytesIO())
    before = set(tmp_path.rglob("*"))
    with pytest.raises(FormatError, match=message):
        unpack(UnpackConfig(str(tmp_path / "m.tar"), str(tmp_path / "out")))
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "gzip", "no sums"])
def test_damage_is_found(model: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.tar"
    pack(PackConfig(str(model), str(path)))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        at = data.index(b'"num_hidden_layers": 1')
        data[at + 21] = ord("2")
    elif damage == "cut":
        data = data[: len(data) // 2 + 100]
    elif damage == "gzip":
        import gzip

        data = bytearray(gzip.compress(bytes(data)))
    else:
        data = bytearray({"empty": b"", "text": b"hello" * 500, "no sums": data}[damage])
    path.write_bytes(data)
    if damage == "no sums":
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("tiny/config.json"), io.BytesIO())
    with pytest.raises(FormatError):
        unpack(UnpackConfig(str(path), str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        unpack(UnpackConfig(str(tmp_path / "none.tar"), str(tmp_path / "out")))
    with pytest.raises(NotFound):
        pack(PackConfig(str(tmp_path / "none"), str(tmp_path / "m.tar")))


# --- the card -----------------------------------------------------------------------------------------------------


def test_the_head_of_a_card_is_yaml_that_nothing_breaks_out_of() -> None:
    yaml = pytest.importorskip("yaml")
    lineage = {
        "licence": "mit and cc-by-sa-4.0", "language": ["en"], "parent": {"name": "org/base", "licence": "mit"},
        "data": [{"name": "org/rows: [x]\n---\nevil: yes", "licence": "cc-by-sa-4.0"}, {"name": "org/set"}],
        "scores": {"bits_per_byte": 1.25, "note": "fine", "nan": float("nan")}, "run": "r1", "recipe": {"seed": 3},
    }  # fmt: skip
    card = render_card(lineage, ARCH, name='odd": name')
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    found = yaml.safe_load(head)
    assert found["license"] == "other"
    assert found["license_name"] == "mit-and-cc-by-sa-4.0"
    assert found["base_model"] == ["org/base"]
    assert found["datasets"] == ["org/set"]
    assert found["model-index"][0]["results"][0]["metrics"] == [{"type": "bits_per_byte", "value": 1.25}]
    assert "evil" not in found
    for heading in ("## Intended use and limits", "## How it was made", "## Licences", "## Scores", "## Use"):
        assert heading in body
    assert "seed 3" in body
    assert "share alike" in body
    assert yaml.safe_load(render_card({"licence": "MIT"}, ARCH).split("---")[1])["license"] == "mit"


# --- push ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the tests are offline but for loopback
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_server.serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        yield found


def test_a_push_is_one_commit_of_what_is_shared(
    model: Path, server: hub_server.Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["models", "push", str(model), "hub:org/name", "--private", "--message", "first", "--yes"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert server.repos == {"org/name": True}
    assert server.message == "first"
    assert server.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert set(server.files) == {p.name for p in model.iterdir()}
    assert "non-commercial" in said.err
    assert "hf_secret" not in said.out + said.err
    assert said.out.strip().startswith(server.address)


def test_nothing_is_pushed_unasked(
    model: Path, server: hub_server.Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models", "push", str(model), "hub:org/name"]) == 2
    assert "nobody is there to confirm" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert main(["models", "push", str(model), "hub:org/name"]) == 1
    assert not server.tokens
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert main(["models", "push", str(model), "hub:org/name"]) == 0
    assert server.files


def test_a_refusal_is_one_line_without_the_token(server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AuthError, match="refuses") as caught:
        hub.push("org/name", {"README.md": b"x"})
    assert "hf_wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(AuthError, match="HF_TOKEN"):
        hub.push("org/name", {})
    with pytest.raises(UsageError, match="no hub name"):
        hub.push("name", {})
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError):
        hub.push("org/name", {"README.md": b"x"})
