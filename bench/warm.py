"""How the engine starts, and what memory it takes.

1. Warm: from the start of a process to the default model's first token; the median of nine.
2. Compiling: the same with no compiled code on disk, less the warm one's load.
3. Memory of no file, after the imports, against what the packed weights and the cache of keys and values may take.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.engine import THREADS, random_model, scratch
from ladderlm import engine
from ladderlm.engine import measure as step
from ladderlm.evals import fresh
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL

PROMPT = 512  # tokens read before memory is looked at


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Processes started meanwhile find no compiled code."""
    before = os.environ.get("NUMBA_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("NUMBA_CACHE_DIR")
            os.environ.update({"NUMBA_CACHE_DIR": before} if before is not None else {})


def starts(count: int, prompt: int = 16, model: str = DEFAULT_MODEL) -> list[fresh.Fresh]:
    """So many fresh processes, after one that leaves everything warm."""
    return [fresh.start(model, int(THREADS), prompt) for _ in range(count + 1)][1:]


def compile_seconds(warm: float) -> float:
    """Seconds that a first use takes longer than a warm start's loading."""
    with nothing_compiled():
        return fresh.start(DEFAULT_MODEL, int(THREADS)).load_seconds - warm


def packed_bytes(path: Path) -> int:
    """Bytes of the matrices, as the file holds them: what packing starts from."""
    files = open_model(str(path))
    table = 0 if files.arch.tied else files.arch.vocab_size * files.arch.dim
    return step.weight_bytes(files.arch, files.weights) + table


def memory(model: str, prompt: int) -> dict[str, Any]:
    """Anonymous bytes of a process that read `prompt` tokens, and what it may have."""
    files = open_model(model)
    (found,) = starts(1, prompt, model)
    backend = engine.on_cpu(files.arch, files.weights, threads=1, key=files.hash)
    cached = prompt * step.cache_bytes(backend)
    backend.close()
    packed = packed_bytes(files.path)
    if found.anonymous_bytes is None or found.imported_bytes is None:
        return {"left_out": "this system does not tell"}
    allowed = int(1.25 * packed) + cached + 64_000_000
    taken = found.anonymous_bytes - found.imported_bytes
    return {"anonymous_after_imports": taken, "allowed": allowed, "packed_bytes": packed, "cache_bytes": cached,
            "peak_resident": found.peak_bytes, "prompt_tokens": prompt}  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    found = starts(1 if minute else 9)
    wall = statistics.median(f.wall_seconds for f in found)
    load = statistics.median(f.load_seconds for f in found)
    compiling = compile_seconds(load)
    bars = {
        "a warm start to the first token in at most 1.5 s": wall <= 1.5,
        "compiling takes at most 20 s": compiling <= 20,
    }
    held = {}
    with scratch() as folder:
        models = {"default": DEFAULT_MODEL}
        models |= {} if minute else {name: str(random_model(folder, name, "Q8_0")) for name in ("15m", "110m")}
        for name, model in models.items():
            held[name] = memory(model, 64 if minute else PROMPT)
            bars[f"{name}: anonymous memory at most 1.25 x packed + cache + 64 MB"] = held[name].get(
                "anonymous_after_imports", 0
            ) <= held[name].get("allowed", 0)
    result = {
        "warm_start_seconds": [round(f.wall_seconds, 3) for f in found], "warm_start_median": round(wall, 3),
        "load_seconds_median": round(load, 3), "compile_seconds": round(compiling, 1), "memory": held,
    }  # fmt: skip
    return result if minute else {**result, "bars": bars}
