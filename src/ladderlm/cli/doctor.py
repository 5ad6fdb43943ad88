"""`ladderlm doctor`: the machine, the workspace and the extras, as this program sees them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from ladderlm import store
from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.cli.models import size
from ladderlm.config import option
from ladderlm.talk.device import gpu_there

EXTRAS = {"hub": ["huggingface-hub"], "serve": ["fastapi", "uvicorn"], "train": ["torch"],
          "eval": ["sacrebleu", "rouge-score", "scikit-learn"]}  # fmt: skip
CORE = ["numpy", "numba", "tokenizers", "safetensors", "jinja2", "httpx", "rich", "llguidance"]


@dataclass(frozen=True, slots=True)
class DoctorConfig:
    json: bool = option(False, "print JSON")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def report() -> dict[str, str]:
    """What matters for running, name -> finding."""
    home = store.make_dir(store.home())
    disk = shutil.disk_usage(home)
    cache, packed = store.cache_dir(), store.cache_dir() / "packed"
    rows = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "workspace": f"{home}, {disk.free / 1e9:.1f} GB free",
        "cache": f"{size(store.folder_bytes(cache))}, of it packed weights {size(store.folder_bytes(packed))} "
        f"(at most {size(store.cache_limit())}: LADDERLM_CACHE_GB)",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        rows["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    rows["device"] = "cuda" if gpu_there() else "cpu"
    for package in CORE:
        rows[package] = version(package) or "MISSING: pip install ladderlm"
    for extra, packages in EXTRAS.items():
        for package in packages:
            rows[package] = version(package) or f"not installed (extra: {extra})"
    return rows


def main(argv: list[str]) -> int:
    config = parse("doctor", DoctorConfig, argv, description="What this machine has, and what is missing.")
    rows = report()
    if config.json:
        show.emit_json(rows)
    else:
        show.table(list(rows.items()), ("what", "found"))
    return 1 if any(v.startswith("MISSING") for v in rows.values()) else 0
