"""What `./ladder test` runs: lint, types, pytest. `--slow` adds the slow tier; other arguments go to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    args = sys.argv[1:]
    slow = "--slow" in args or "--all" in args
    args = [a for a in args if a not in ("--slow", "--all")]
    failed = []
    if not args:
        for name, command in {
            "lint": ["ruff", "check", "."],
            "types": ["mypy"],
        }.items():
            print(f"== {name}", flush=True)
            if subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode:
                failed.append(name)
    marker = ["--durations=20", "--durations-min=10"] if slow else ["-m", "not slow"]
    print("== tests", flush=True)
    env = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    code = subprocess.run([sys.executable, "-m", "pytest", *marker, *args], cwd=ROOT, env=env).returncode
    if failed:
        print("failed: " + ", ".join(failed))
    return code or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
