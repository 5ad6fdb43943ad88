"""PDF files are read in a process of their own: what happens to it happens to it alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_collect_formats import make_pdf

from ladderlm.data import pdf
from ladderlm.data.archives import Blob, Refused, open_blob
from ladderlm.data.pdf import Reader

pytest.importorskip("pypdfium2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.pdf").write_bytes(make_pdf("Minutes of the meeting"))
    return tmp_path / "a.pdf"


def test_files_and_members_of_archives_are_read_by_one_process(file: Path) -> None:
    reader = Reader()
    with open_blob(file, "a.pdf") as blob:
        assert pdf.read(blob, reader) == {"text": "Minutes of the meeting", "title": "Minutes"}
    first = reader._process
    assert pdf.read(Blob("b.pdf", io.BytesIO(file.read_bytes())), reader)["title"] == "Minutes"
    assert reader._process is first
    reader.close()
    assert first is not None
    assert first.returncode is not None


def test_a_process_that_dies_costs_one_file(file: Path) -> None:
    reader = Reader()
    reader.read(file)
    assert reader._process is not None
    os.kill(reader._process.pid, signal.SIGSTOP)
    os.kill(reader._process.pid, signal.SIGKILL)
    with pytest.raises(Refused) as found:
        reader.read(file)
        reader.read(file)  # where the system had already told of its end, another one was started
        raise Refused("broken-pdf")
    assert found.value.rule == "broken-pdf"
    assert reader.read(file)["text"] == "Minutes of the meeting"
    reader.close()


def test_one_that_takes_too_long_is_stopped(file: Path) -> None:
    reader = Reader(seconds=0.0)
    began = time.monotonic()
    with pytest.raises(Refused) as found:
        reader.read(file)
    assert found.value.rule == "too-slow"
    assert time.monotonic() - began < 30
    reader.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of memory")
def test_one_that_takes_too_much_memory_ends_itself(file: Path) -> None:
    reader = Reader(memory=8 << 20)  # less than the library itself needs
    with pytest.raises(Refused) as found:
        reader.read(file)
    assert found.value.rule in ("broken-pdf", "too-large")
    reader.close()


def test_the_process_ends_with_the_one_that_started_it(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ladderlm.data import pdf\n"
        "reader = pdf.reader(); reader.read(Path(sys.argv[1])); print(reader._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n" + b"\xff" * 5000)
    reader = Reader()
    with pytest.raises(Refused) as found:
        reader.read(tmp_path / "a.pdf")
    assert found.value.rule == "not-a-pdf"
    with pytest.raises(Refused) as found:
        reader.read(tmp_path / "none.pdf")
    assert found.value.rule in ("not-a-pdf", "broken-pdf")
    reader.close()
