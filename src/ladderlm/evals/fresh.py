"""A model in a process of its own, from nothing to its first token: times and memory.

`python -m ladderlm.evals.fresh MODEL THREADS PROMPT DEVICE` is that process; it writes one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ladderlm.errors import LadderError, UsageError
from ladderlm.types import Sampling, Value


@dataclass(frozen=True, slots=True)
class Fresh(Value):
    """Seconds and bytes. `wall_seconds`: from the start of the process to its first token; `load_seconds`: of opening
    the model; `peak_bytes`: the most resident memory, files mapped included. `imported_bytes` and `anonymous_bytes`:
    memory of no file, after the imports and at the end, once a prompt has been read. None where the system does not
    tell."""

    wall_seconds: float
    load_seconds: float
    peak_bytes: int | None
    imported_bytes: int | None
    anonymous_bytes: int | None


def start(model: str, threads: int, prompt: int = 16, *, device: str = "cpu") -> Fresh:
    """Starts a process that opens `model` on `device`, reads `prompt` random tokens and writes one.

    Raises LadderError if it fails.
    """
    command = [sys.executable, "-m", "ladderlm.evals.fresh", model, str(threads), str(prompt), device]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LadderError(
            done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}", where="a new process"
        )
    said = json.loads(done.stdout)
    return Fresh(wall_seconds=said.pop("first_token_at") - began, **said)


def anonymous() -> int | None:
    """Bytes of this process's memory that no file stands behind."""
    return _field(Path("/proc/self/smaps_rollup"), "Anonymous:")


def peak() -> int | None:
    """The most memory this process has had resident, in bytes."""
    return _field(Path("/proc/self/status"), "VmHWM:")


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def main(argv: Sequence[str]) -> int:
    import numpy as np

    from ladderlm.engine import network  # noqa: F401  what loading imports: none of the model's memory
    from ladderlm.models import open_model
    from ladderlm.talk.device import load

    model, threads, prompt, device = argv[0], int(argv[1]), int(argv[2]), argv[3]
    imported, began = anonymous(), time.perf_counter()
    files = open_model(model)
    with load(files, device, threads=threads) as running:
        loaded = time.perf_counter() - began
        ids = np.random.default_rng(os.getpid()).integers(0, files.arch.vocab_size, prompt).tolist()
        for delta in running.generate(ids, Sampling(temperature=0, max_tokens=1, min_tokens=1)):
            if delta.tokens:
                break
        else:
            raise UsageError("the model wrote no token", where=model)
        said = {"first_token_at": time.time(), "load_seconds": loaded, "peak_bytes": peak()}
        said |= {"imported_bytes": imported, "anonymous_bytes": anonymous()}
    sys.stdout.write(json.dumps(said))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LadderError as error:
        sys.exit(str(error))
