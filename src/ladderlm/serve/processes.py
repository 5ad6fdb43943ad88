"""Child processes of the same command line that outlive the server, and how the next server knows them again.

A child and all that it starts hold a lock on a file in its folder as long as one of them lives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ladderlm import store
from ladderlm.errors import StorageError

NICE = 10
LOCK, NUMBER, OUT, LOG = "alive.lock", "pid", "out.json", "log.txt"


def launch(folder: Path, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """`ladderlm ARGV`, niced, in a group of its own; what it prints and tells goes to files in `folder`."""
    command = [sys.executable, "-m", "ladderlm", *argv]
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not store.try_lock(lock):
            raise StorageError("there is a process already", where=str(folder))
        with (folder / OUT).open("wb") as out, (folder / LOG).open("ab") as told:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=told, start_new_session=True,
                pass_fds=(lock,) if os.name == "posix" else (),
            )  # fmt: skip
    finally:
        os.close(lock)
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)  # before it has threads, which inherit it
    store.write_json(folder / NUMBER, child.pid)
    return child


def alive(folder: Path) -> bool:
    """Whether a process of this folder lives: then the lock is held."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not store.try_lock(fd)
    finally:
        os.close(fd)


def kill(folder: Path, *, at_once: bool = False) -> None:
    """Asks the processes to end, or ends them. Only while the lock is held is the number surely theirs."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / NUMBER).read_text())
        if alive(folder):
            os.killpg(pid, signal.SIGKILL if at_once else signal.SIGTERM)


def end(folder: Path, seconds: float = 5.0) -> None:
    """Ends them at once, and waits until they are gone."""
    until = time.monotonic() + seconds
    while alive(folder) and time.monotonic() < until:
        kill(folder, at_once=True)
        time.sleep(0.05)
