"""Untrusted code: what it may do, and what it may not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ladderlm.errors import LadderError, UsageError
from ladderlm.sandbox.python import Finished, run_python


def attempt(code: str, seconds: float = 20.0) -> Finished:
    try:
        return run_python(code, seconds=seconds)
    except LadderError as error:
        if "untrusted code cannot be run" not in str(error) or sys.platform == "linux":
            raise
        pytest.skip(str(error))


def test_code_runs_with_the_standard_library_and_its_own_folder() -> None:
    found = attempt("import math, json\nopen('a.txt', 'w').write('x')\nprint(math.sqrt(16), open('a.txt').read())")
    assert found == Finished(True, "4.0 x\n")


def test_an_error_is_told() -> None:
    found = attempt("assert 1 + 1 == 3, 'sum'")
    assert not found.ok
    assert "AssertionError: sum" in found.output


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import os; os.listdir('/')",
        "import socket; socket.create_connection(('127.0.0.1', 80), 1)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
        "x = bytearray(2 << 30)",
        "open('big', 'wb').write(bytes(8 << 20))",
    ],
)
def test_what_it_may_not_do(code: str) -> None:
    assert not attempt(code).ok


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    assert not attempt(f"open({str(victim)!r}, 'w').write('yours')").ok
    assert not attempt(f"import os; os.remove({str(victim)!r})").ok
    assert victim.read_text() == "mine"


def test_time_is_limited() -> None:
    found = attempt("while True: pass", seconds=1.0)
    assert not found.ok
    with pytest.raises(UsageError, match="needs time"):
        run_python("pass", seconds=0)
