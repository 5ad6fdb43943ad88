"""Quickstart end to end on a small scale: every rung, the report, and going on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ladderlm import store
from ladderlm.apps.quickstart import QuickstartConfig, climb, install, run
from ladderlm.apps.quickstart.ledger import Ledger
from ladderlm.apps.quickstart.server import free_port, serving
from ladderlm.cli.quickstart import tell

RECIPE = """
[pretrain]
vocab_size = 512
layers = 2
dim = 64
heads = 1
seq_len = 128
steps = 30
batch_tokens = 512
[sft]
method = "full"
lr = 1e-3
steps = 20
[align]
method = "full"
steps = 4
[finetune]
rank = 2
layers_trained = 2
steps = 2
batch_tokens = 128
"""


def test_the_ledger_runs_a_stage_once_per_settings(tmp_path: Path) -> None:
    path, calls = tmp_path / "ledger.json", []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"n": len(calls)}

    assert Ledger(path).run("a", {"lr": 1}, work) == {"n": 1}
    assert Ledger(path).run("a", {"lr": 1}, work) == {"n": 1}
    assert Ledger(path).run("a", {"lr": 2}, work) == {"n": 2}
    with pytest.raises(RuntimeError):
        Ledger(path).run("b", {}, lambda: (_ for _ in ()).throw(RuntimeError()))
    assert Ledger(path).results("b") is None


def test_the_recipe_is_found_and_extras_are_named() -> None:
    assert climb.tiny_recipe().exists()
    assert any(r.startswith("torch") for r in install.requirements("train"))


def test_a_taken_port_is_passed_over() -> None:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        taken = s.getsockname()[1]
        assert free_port(taken) != taken


def test_the_server_answers_and_stops(tmp_path: Path) -> None:
    with serving("echo", 0, tmp_path / "log") as url:
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "echo"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/health", timeout=2)


@pytest.mark.slow
def test_all_rungs_and_again(tmp_path: Path, default_model: str, workspace: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("torch")
    from ladderlm.apps.quickstart import build, finetune, prompt
    from ladderlm.data import tasks

    place = store.make_dir(workspace / "models") / "smollm2-135m-instruct.gguf"
    place.symlink_to(default_model)
    monkeypatch.setattr(climb, "DEFAULT_MODEL", str(place))
    monkeypatch.setattr(climb.Climb, "pull", lambda self: None)
    monkeypatch.setattr(finetune, "HELD_OUT", 12)
    monkeypatch.setattr(prompt, "REVIEWS", prompt.REVIEWS[:4])
    monkeypatch.setattr(build, "ENDS", 6)
    monkeypatch.setattr(build, "SHOWN", 3)
    full = tasks.docs_questions
    monkeypatch.setattr(tasks, "docs_questions", lambda *a, **k: {s: r[:200] for s, r in full(*a, **k).items()})
    recipe, corpus = tmp_path / "recipe.toml", tmp_path / "corpus.jsonl"
    recipe.write_text(RECIPE)
    modules = __import__("ladderlm.data.collect", fromlist=["collect"]).python_corpus()[:60]
    corpus.write_text("".join(json.dumps({"text": r["text"][:4000]}) + "\n" for r in modules))
    config = QuickstartConfig(serve=False, corpus=corpus, recipe=recipe, out=tmp_path / "run")

    climbed = run(config, tell)
    assert set(climbed.found) >= {"prompt", "before", "tuned", "after", "pretrained", "aligned", "bits", "compared"}
    page = climbed.report.read_text()
    for part in ("Prompt", "Fine-tune", "Build", "bits per byte", "<svg"):
        assert part in page
    assert "Build: bits per byte" in capsys.readouterr().out
    models = {p.name for p in (workspace / "models").iterdir()}
    assert {"quickstart-lora", "quickstart-base", "quickstart-tuned", "quickstart-aligned"} <= models

    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    del ledger["compared"]
    (tmp_path / "run" / "ledger.json").write_text(json.dumps(ledger))
    before = {n: (workspace / "models" / n).stat().st_mtime for n in models}
    run(config, lambda stage, found: None)
    assert {n: (workspace / "models" / n).stat().st_mtime for n in models} == before, "only the last stage runs again"


def test_terminating_stops_the_server_too(tmp_path: Path) -> None:
    """What a command started ends with it, also when it is told to end by a signal."""
    script = (
        "import sys, time, types, ladderlm.cli.main as m\n"
        "from pathlib import Path\n"
        "from ladderlm.apps.quickstart.server import serving\n"
        "def command(argv):\n"
        f"    with serving('echo', 0, Path({str(tmp_path / 'log')!r})) as url:\n"
        "        print(url, flush=True)\n"
        "        time.sleep(60)\n"
        "sys.modules['fake'] = types.SimpleNamespace(command=command)\n"
        "m.VERBS['doctor'] = ('fake:command', '')\n"
        "sys.exit(m.main(['doctor']))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert httpx.get(f"{url}/health").status_code == 200
    parent.terminate()
    assert parent.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/health", timeout=2)
