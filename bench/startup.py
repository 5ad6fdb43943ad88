"""CPU seconds of a command that does no work, in a fresh process; the median of several."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

COMMANDS = {"help": ["--help"], "models list": ["models", "list"], "chat --help": ["chat", "--help"]}


def cpu_of(args: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "ladderlm", *args], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(minute: bool) -> dict[str, Any]:
    rounds = 5 if minute else 15
    figures = {
        name: round(statistics.median(cpu_of(args) for _ in range(rounds)), 3) for name, args in COMMANDS.items()
    }
    return {"cpu_seconds_median": figures, "bars": {f"{n} under 0.5 s CPU": s < 0.5 for n, s in figures.items()}}
