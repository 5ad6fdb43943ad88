"""The chat page as a child process, so that training never stutters it and Ctrl-C ends both."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ladderlm.errors import LadderError, PortInUse


def free_port(wanted: int) -> int:
    """`wanted` if it is free on the loopback, else one the system chooses. PortInUse never: 0 always works."""
    for port in (wanted, 0):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return int(s.getsockname()[1])
    raise PortInUse("no free port on the loopback")


@contextlib.contextmanager
def serving(model: str, port: int, log: Path, timeout: float = 120.0) -> Iterator[str]:
    """Serves `model` and yields the page's URL once it answers; stops the server when the block ends."""
    import httpx

    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "ladderlm", "serve", model, "--port", str(port)]
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + timeout
        while True:
            if child.poll() is not None or time.monotonic() > until:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise LadderError("the server did not start", where=lines[-1], cure=f"see {log}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
