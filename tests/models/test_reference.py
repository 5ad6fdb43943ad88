"""References: one grammar; and the catalogue's view of what is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from test_folder import save

from ladderlm import store
from ladderlm.errors import FormatError, LadderError, MissingExtra, NotFound, UsageError
from ladderlm.models import catalogue, open_model
from ladderlm.models.catalogue import DEFAULT_MODEL


def test_names_in_the_workspace(workspace: Path) -> None:
    save(store.models_dir() / "mine")
    tiny.write_gguf(store.models_dir() / "other.gguf")
    assert open_model("mine").name == "mine"
    assert open_model("other").name == "other"
    entries = {e.name: e for e in catalogue.list_models()}
    assert set(entries) == {DEFAULT_MODEL, "mine", "other"}
    assert entries["mine"].parameters == tiny.ARCH.parameters
    assert entries["mine"].licence == "apache-2.0"
    assert not entries[DEFAULT_MODEL].here
    with pytest.raises(NotFound, match="'mine'"):
        open_model("mne")


def test_runs(workspace: Path) -> None:
    run = store.new_run("pretrain", {})
    with pytest.raises(NotFound, match="holds no model"):
        open_model(f"run:{run.id}")
    save(run.path / "model")
    assert open_model(f"run:{run.id}").arch == tiny.ARCH
    with pytest.raises(NotFound, match="no such run"):
        open_model("run:none")


@pytest.mark.parametrize("ref", ["", "http://host/v1#m", "url#model"])
def test_what_is_no_file_is_a_usage_error(ref: str) -> None:
    with pytest.raises(UsageError):
        open_model(ref)


def test_what_is_not_there(tmp_path: Path) -> None:
    for ref in (str(tmp_path / "none"), "none.gguf", "a+b", f"{tmp_path}/none+x"):
        with pytest.raises(LadderError) as caught:
            open_model(ref)
        assert caught.value.cure
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="no model here"):
        open_model(str(tmp_path / "folder"))
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(FormatError, match="not a GGUF"):
        open_model(str(tmp_path / "x.gguf"))


def test_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match="hub"):
        open_model("hub:org/name@main")


def test_hub_names_are_checked() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(UsageError, match="no hub name"):
        open_model("hub:name")


def test_remove(workspace: Path) -> None:
    save(store.models_dir() / "mine")
    assert catalogue.remove("mine") == store.models_dir() / "mine"
    assert not list(store.models_dir().iterdir())
    for name in ("mine", "../mine", DEFAULT_MODEL):
        with pytest.raises(NotFound):
            catalogue.remove(name)


def test_describe(workspace: Path) -> None:
    tiny.write_gguf(store.models_dir() / "tiny.gguf")
    found = catalogue.describe("tiny")
    assert found["parameters"] == tiny.ARCH.parameters == sum(found["precision"].values())
    assert found["template"] is True
    assert found["context_length"] == 128
    assert found["expected_tokens_per_second"] > 0
    assert "estimate" in found
    assert any("non-commercial" in flag for flag in found["licence_flags"])
    away = catalogue.describe(DEFAULT_MODEL)
    assert away["here"] is False
    assert away["parameters"] == 134_515_008


def test_describe_the_default_model(default_model: str) -> None:
    found = catalogue.describe(default_model)
    assert found["parameters"] == 134_515_008
    assert set(found["precision"]) == {"Q4_1", "Q8_0", "F32"}
    assert found["licence"].lower() == "apache-2.0"


def test_recommend() -> None:
    assert [e.name for e in catalogue.recommend("chat")] == [DEFAULT_MODEL]
    with pytest.raises(UsageError, match="did you mean 'chat'"):
        catalogue.recommend("chatt")


def test_models_list_is_light(workspace: Path) -> None:
    script = (
        "import sys, time\n"
        "from ladderlm.cli.models import main\n"
        "code = main(['list', '--json'])\n"
        "heavy = [m for m in ('torch', 'numba', 'tokenizers', 'jinja2') if m in sys.modules]\n"
        "print(heavy, time.process_time(), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "LADDERLM_HOME": str(workspace)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    heavy, seconds = done.stderr.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5
    assert json.loads(done.stdout)[0]["name"] == DEFAULT_MODEL


def test_command_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ladderlm.cli import models, tokenizer

    save(store.models_dir() / "mine")
    assert models.main(["show", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"
    assert models.main(["show", "mine"]) == 0
    assert "estimate" in capsys.readouterr().out
    assert models.main(["recommend", "chat"]) == 0
    assert models.main(["rm", "mine"]) == 0
    with pytest.raises(UsageError, match="did you mean 'list'"):
        models.main(["lst"])
    text = workspace / "text.txt"
    text.write_text("the quick brown fox " * 50)
    capsys.readouterr()
    out = workspace / "tokenizer.json"
    assert tokenizer.main(["train", str(text), "--vocab-size", "280", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] <= 280
    assert tokenizer.main(["encode", "the <|im_end|>", "--tokenizer", str(out), "--json"]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["tokens"]) == "the <|im_end|>"
    assert tokenizer.main(["stats", str(text), "--tokenizer", str(out), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["round_trip"] is True
    assert stats["bytes_per_token"] > 2
