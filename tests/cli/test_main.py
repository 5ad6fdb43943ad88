"""The table of verbs: help, unknown names, exit codes."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from ladderlm.cli.main import VERBS, main


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_without_heavy_imports(verb: str) -> None:
    code = (
        "import sys, ladderlm.cli.main as m\n"
        f"try: code = m.main([{verb!r}, '--help'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'torch', 'numba', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_flag_is_a_usage_error(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([verb, "--no-such-flag-at-all"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert capsys.readouterr().err


def test_an_unknown_verb_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chatt"]) == 2
    assert "did you mean 'chat'" in capsys.readouterr().err


def test_a_wrong_model_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["ask", "-m", "no-such-model", "hello"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
