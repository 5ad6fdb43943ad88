"""Speed against size: random models of 15 M to 7 B weights at 4 bits; tokens a second, memory and loading of each.

The same settings as bench/engine.py. The largest file has 4 GB, and with its packed copy needs 12 GB of disk.
"""

from __future__ import annotations

import os
from typing import Any

from bench import random_gguf
from bench.engine import bench, line, missing, random_model, scratch
from ladderlm.evals.peers import LLAMA_FOLDER


def measure(minute: bool) -> dict[str, Any]:
    names = ("15m",) if minute else tuple(random_gguf.SHAPES)
    why = missing(os.environ.get(LLAMA_FOLDER))
    result: dict[str, Any] = {"llama_cpp_left_out": why} if why else {}
    with scratch() as folder:
        for name in names:
            # Of 7 billion weights llama.cpp reads 512 tokens in minutes.
            work = ["--only", "decode_128", *(() if name == "7b" else ("--only", "prefill_512"))]
            rounds, tokens = ("1", "4") if minute else ("1", "16") if name in ("1.1b", "7b") else ("3", "48")
            path = random_model(folder, name, "Q4_0")
            found = bench(path, () if why else ("llama.cpp",), ["--rounds", rounds, "--tokens", tokens, *work])
            result[name] = line(found)
    return result
