"""schemathesis on our own /openapi.json: what it lets in comes out as it says, and nothing breaks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live import Able, served

from ladderlm.serve.models import Models

KEY = "sk-fuzzed"  # the local admin's: the first key that a test makes would shut all others out
# A request can fit the schema and yet make no sense (a tool_choice that names no tool, two tools of one name, nothing
# to answer): that is 400, which this check must know. An upload's parts are bytes, so a number in the place of a string
# is that string of digits. All other checks stand as they come.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 429, "5xx"]
[[operations]]
include-name = "POST /v1/files"
[operations.checks.negative_data_rejection]
enabled = false
"""


def _command() -> str | None:
    beside = Path(sys.executable).with_name("schemathesis")
    return os.environ.get("SCHEMATHESIS") or (str(beside) if beside.exists() else shutil.which("schemathesis"))


@pytest.mark.slow
def test_no_failures(tmp_path: Path) -> None:
    command = _command()
    if command is None:
        pytest.skip("schemathesis is not installed (SCHEMATHESIS names it elsewhere)")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    chat = Able()
    with served(Models(("m",), opener=lambda ref: chat), key=KEY) as url:
        done = subprocess.run(
            [command, "--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{url}/openapi.json",
             "--header", f"Authorization: Bearer {KEY}",
             "--max-examples", os.environ.get("SCHEMATHESIS_EXAMPLES", "20")],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:]
