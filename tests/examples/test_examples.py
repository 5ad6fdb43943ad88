"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_prompt(default_model: str, workspace: Path) -> None:
    place = workspace / "cache" / "models"
    place.mkdir(parents=True)
    (place / "smollm2-135m-instruct.gguf").symlink_to(default_model)
    assert len(run("prompt.py").strip().splitlines()) >= 5


@pytest.mark.slow
def test_build_then_finetune(tmp_path: Path) -> None:
    text = "\n".join(f"The {a} has a {b}." for a in ("fox", "hen", "cat") for b in ("hat", "box", "pen"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"{i}. {text}"}) + "\n" for i in range(40)))
    assert "bits_per_byte" in run("build.py", str(corpus), str(tmp_path / "base"), "4")
    records = tmp_path / "records.jsonl"
    rows = [[{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Ho"}] for i in range(40)]
    records.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    script = (
        (EXAMPLES / "finetune.py")
        .read_text()
        .replace("replace=True", f"model={str(tmp_path / 'base')!r}, replace=True")
    )
    (tmp_path / "finetune.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "finetune.py"), str(records), str(tmp_path / "tuned"), "4"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tuned").exists()
