"""Installs the extras the later rungs need, with the user's own pip configuration, while the first rung is in use."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from ladderlm import events
from ladderlm.errors import MissingExtra, NetworkError

# What each extra costs, so that nothing is downloaded unannounced.
SIZES = {
    "serve": "fastapi (MIT), uvicorn (BSD-3-Clause) and pydantic (MIT): about 9 MB",
    "train": "torch (BSD-3-Clause): about 0.2 GB as a CPU build; an index that serves CUDA builds sends several GB",
    "eval": "scikit-learn, scipy, sacrebleu, rouge-score (BSD, Apache-2.0): about 0.1 GB",
}
MODULES = {"serve": ["fastapi", "uvicorn"], "train": ["torch"], "eval": ["sklearn", "sacrebleu", "rouge_score"]}


def requirements(extra: str) -> list[str]:
    """The requirement strings of one of our extras, from the installed package's own metadata."""
    found = []
    for line in importlib.metadata.requires("ladderlm") or []:
        requirement, _, marker = line.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", marker) and not requirement.startswith("ladderlm"):
            found.append(requirement.strip())
    return found


def missing(extra: str) -> bool:
    return any(importlib.util.find_spec(module) is None for module in MODULES[extra])


def ensure(*extras: str) -> None:
    """Installs what is missing of `extras` into this environment. NetworkError when pip cannot.

    Raises:
        MissingExtra: this environment has no pip.
    """
    wanted = [e for e in extras if missing(e)]
    if not wanted:
        return
    if importlib.util.find_spec("pip") is None:
        raise MissingExtra(MODULES[wanted[0]][0], wanted[0])
    for extra in wanted:
        events.emit("install", SIZES[extra])
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = Path(__file__).resolve().parents[4] / "constraints.txt"
    if constraints.exists():  # a clone: the versions we test with
        command += ["-c", str(constraints)]
    command += [r for extra in wanted for r in requirements(extra)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode or any(missing(e) for e in wanted):
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise NetworkError(
            "could not install " + " and ".join(wanted), where=last, cure="fix it and run quickstart again"
        )
    events.emit("install", "done")
