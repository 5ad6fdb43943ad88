"""The three commands as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stories import SIZES, STORIES, write_jsonl

from ladderlm.cli import train


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "align"])
def test_help_needs_no_torch(verb: str) -> None:
    code = f"import sys, ladderlm.cli.main as m\ntry: m.main(['{verb}', '--help'])\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--minutes" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_pretrain_prints_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": s * 3} for s in STORIES])
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    assert train.pretrain([str(data), "--steps=2", "--out", str(tmp_path / "m"), "--json", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 2
    assert (tmp_path / "m" / "model.safetensors").exists()
