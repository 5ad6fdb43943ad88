"""A minute's worth of each bench runs, and meets its bars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


NAMES = ["startup", "speed", "parity", "quantise", "gguf", "engine", "sizes", "warm", "busy", "turns", "tokenizer",
         "crash", "prepare", "load", "chaos", "schemas"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_of(name: str, tmp_path: Path, default_model: str, workspace: Path) -> None:
    cache = workspace / "cache" / "models"
    cache.mkdir(parents=True)
    (cache / "smollm2-135m-instruct.gguf").symlink_to(default_model)
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--minute", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["name"] == name


def test_a_minute_of_pii(shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "pii", "--minute", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["shared"]["ours"]["phone"]["f1"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "grpo", "ppo", "harm", "climb", "shuffled", "tasks"])
def test_a_minute_of_tuning(name: str, shared_data: Path, tmp_path: Path, default_model: str, workspace: Path) -> None:
    test_a_minute_of(name, tmp_path, default_model, workspace)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["domain", "languages", "timetoloss"])
def test_a_minute_of_training(name: str, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--minute", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    if name == "domain":
        assert found["with_replay"]["held_out"]["difference"]["high"] < 0
    elif name == "languages":
        assert found["right"]["share"] > 0.8
    else:
        assert [run["who"] for run in found["runs"]] == ["nanogpt", "ours", "ours", "ours"]
        assert all(run["bits_per_byte"] < 4.5 for run in found["runs"])


@pytest.mark.slow
def test_a_minute_of_finetune(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "finetune", "--minute", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["qlora"]["peak_bytes"] < found["lora"]["peak_bytes"]
    sys.path.insert(0, str(ROOT))
    from bench.finetune import TEXTS, texts

    # Every text once, its last token but a target; the first step is not timed.
    timed = texts(2048, TEXTS * found["steps"])[TEXTS:]
    assert found["rows"]["ours"][0]["tokens"] == sum(len(ids) - 1 for ids, _ in timed)


def test_the_docs_name_every_proof_and_no_other() -> None:
    sys.path.insert(0, str(ROOT))
    from bench.__main__ import BENCHES

    rows = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8").partition("## Proofs")[2].splitlines()
    assert {row.split("`")[1] for row in rows if row.startswith("| `")} == set(BENCHES)
