"""PDF files read in a process of their own: one that crashes, hangs or eats memory costs itself alone.

The process (pdf_reader.py) is started at the first file, kept for the next ones, and started anew when it has ended.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from ladderlm.data.archives import Blob, Refused, seekable
from ladderlm.errors import MissingExtra

SECONDS = 120.0  # of one document; a book of a thousand pages takes about five
MEMORY = 2 << 30  # bytes of address space of the process
MAX_TEXT = 64 << 20  # characters of one document


class Reader:
    """Reads PDF files one after the other; calls from several threads wait for one another."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        program = Path(__file__).with_name("pdf_reader.py")
        # -P: what lies beside the program is not to be taken for the standard library
        self._command = [sys.executable, "-P", str(program), str(memory), str(MAX_TEXT)]
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> dict[str, str]:
        """`text` and `title`. Raises Refused (not-a-pdf, encrypted, broken-pdf, too-large, too-slow)."""
        with self._lock:
            found = self._ask(path)
        if "rule" in found:
            raise Refused(found["rule"], found.get("why", ""))
        return found

    def _ask(self, path: Path) -> dict[str, str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.daemon = True
        timer.start()
        line = b""
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(str(path)).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        timer.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, str] = json.loads(line)
            return answer
        process.kill()
        process.wait()
        if late.is_set():
            return {"rule": "too-slow", "why": f"more than {self._seconds:g} seconds"}
        return {"rule": "broken-pdf", "why": f"reading it ended its process (status {process.returncode})"}

    def close(self) -> None:
        """Ends the process; the next file starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()


@functools.cache
def reader() -> Reader:
    """The one of this process."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise MissingExtra("pypdfium2", "data")
    return Reader()


def read(blob: Blob, by: Reader | None = None) -> dict[str, Any]:
    """`text` and `title` of a PDF file, on disk or within an archive. Raises Refused, MissingExtra."""
    by = by or reader()
    with seekable(blob) as (file, _):
        if b"%PDF-" not in file.read(1024):
            raise Refused("not-a-pdf")
        if blob.path is not None:
            return by.read(blob.path)
        with tempfile.TemporaryDirectory(prefix="ladderlm-") as folder:  # a name that Windows lets two processes open
            copy = Path(folder) / "file.pdf"
            file.seek(0)
            with copy.open("wb") as out:
                shutil.copyfileobj(file, out)
            return by.read(copy)
