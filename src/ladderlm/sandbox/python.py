"""Python code run in a child process that can do little harm.

The child is a fresh interpreter (isolated, no site packages, an empty environment) in an empty folder of its own, with
limits on time, memory, files and processes. Before the code runs it gives up, by the kernel's word: new privileges,
the network (a namespace of its own without interfaces) and the file system but for reading Python's own library and
using its folder (Landlock, Linux 5.13). Where the kernel cannot do that, nothing is run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ladderlm.errors import LadderError, UsageError

SECONDS, MEGABYTES = 5.0, 512
OUTPUT = 4096  # characters of output that are kept
REFUSED = 97  # the child's exit status where it could not be confined

_CONFINE = r"""
import ctypes, os, resource, struct, sys

def confine(seconds, megabytes, folder, readable):
    hard = {resource.RLIMIT_CPU: int(seconds) + 1, resource.RLIMIT_AS: megabytes << 20, resource.RLIMIT_FSIZE: 1 << 20,
            resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0}
    for what, limit in hard.items():
        resource.setrlimit(what, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000 | 0x08000000):  # user, network and IPC namespaces
        if libc.unshare(0x40000000 | 0x08000000):
            return "network"
    if libc.prctl(38, 1, 0, 0, 0):  # no new privileges
        return "privileges"
    version = libc.syscall(444, 0, 0, 1)
    if version < 1:
        return "files"
    handled = (1 << 13) - 1
    if version >= 2:
        handled |= 1 << 13
    if version >= 3:
        handled |= 1 << 14
    rules = ctypes.create_string_buffer(struct.pack("<Q", handled))
    ruleset = libc.syscall(444, rules, 8, 0)
    if ruleset < 0:
        return "files"
    reading = 1 | 1 << 2 | 1 << 3  # execute, read files, read folders
    for path, rights in [(p, reading) for p in readable] + [(folder, handled)]:
        if not os.path.isdir(path):
            continue
        handle = os.open(path, os.O_PATH)
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights & handled, handle))
        if libc.syscall(445, ruleset, 1, rule, 0):
            return "files"
        os.close(handle)
    if libc.syscall(446, ruleset, 0):
        return "files"
    os.close(ruleset)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return ""
"""

_CHILD = """
missing = confine({seconds!r}, {megabytes!r}, {folder!r}, {readable!r})
if missing:
    sys.stderr.write(missing)
    sys.stderr.flush()
    os._exit({refused})
del confine
with open("code.py", encoding="utf-8") as file:
    source = file.read()
exec(compile(source, "code.py", "exec"), {{"__name__": "__main__"}})
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """`ok`: the code ran to its end. `output` is the end of what it printed and of its traceback."""

    ok: bool
    output: str
    timed_out: bool = False


def run_python(code: str, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Finished:
    """Runs `code` to its end, at most `seconds` long.

    Raises LadderError where this machine's kernel cannot confine a process.
    """
    if not seconds > 0 or megabytes < 64:
        raise UsageError("a sandbox needs time, and 64 MB", where=f"seconds={seconds}, megabytes={megabytes}")
    readable = sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "/usr/lib", "/lib", "/lib64"})
    with tempfile.TemporaryDirectory(prefix="ladderlm-") as folder:
        Path(folder, "code.py").write_text(code, encoding="utf-8", errors="replace")
        child = _CONFINE + _CHILD.format(
            seconds=seconds, megabytes=megabytes, folder=folder, readable=readable, refused=REFUSED
        )
        with Path(folder, "output").open("wb") as out:  # a file has a limit, a pipe has none
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", child],
                cwd=folder, env={"LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            late = False
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        written = Path(folder, "output").read_bytes()[-OUTPUT:].decode("utf-8", "replace")
    if process.returncode == REFUSED:
        where = f"the kernel does not confine: {written.strip()[-60:]}"
        raise LadderError("untrusted code cannot be run here", where=where, cure="Linux 5.13 or newer")
    return Finished(process.returncode == 0 and not late, written, late)
