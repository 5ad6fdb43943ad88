"""The engine against llama.cpp on the same files, in turns; and against OpenVINO GenAI in prefill.

Models: the default one's Q4_1 file, and random ones of 15 M, 110 M and 1.1 B weights at Q8_0 and Q4_0. Tiers: this
processor's own instructions, and AVX2 alone on both sides. Every model and tier is a process of its own, which runs
`ladderlm bench` (evals/speed.py says how it measures).

LLAMA_CPP_BIN and LADDERLM_BENCH_LLAMA_AVX2 name the folders of llama.cpp's tools built for this processor and for AVX2;
LADDERLM_BENCH_OPENVINO a Python with openvino_genai; LADDERLM_BENCH_SCRATCH a folder where the random models stay for
the next time (else they go). LADDERLM_BENCH_THREADS: 2 unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import random_gguf
from ladderlm.convert import gguf
from ladderlm.errors import LadderError, NotFound
from ladderlm.evals.peers import LLAMA_FOLDER, OPENVINO_PYTHON, find_tool
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL

THREADS = os.environ.get("LADDERLM_BENCH_THREADS", "2")
AVX2_FOLDER = "LADDERLM_BENCH_LLAMA_AVX2"
RANDOM = ("15m", "110m", "1.1b")
COLUMNS = ("decode_128", "decode_1024", "prefill_512", "decode_8_together", "decode_32_together")
# What "times faster than llama.cpp" must reach: decode, prefill, 8 and 32 together.
NATIVE_INT8, NATIVE_INT4, NATIVE_15M = (1.3, 2.5, 2.5, 2.5), (1.3, 2.0, 2.5, 2.5), (2.0, 1.5, 2.5, 2.5)
AVX2 = (1.0, 1.2, 1.5, 0.0)
ENOUGH = 0.85  # of the bandwidth: then decode need not be faster than that
SECONDS = {"15m": 20, "1.1b": 1}  # after which no further round begins, where one counts; 30 for the others
SHARES = {"110m": 0.70, "1.1b": 0.80}  # of the bandwidth, that decode must reach anyhow


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Where large files may lie."""
    if folder := os.environ.get("LADDERLM_BENCH_SCRATCH"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def random_model(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"random-{name}-{kind}.gguf"
    return path if path.exists() else random_gguf.write(name, kind, path)


def bench(model: Path, peers: Sequence[str], settings: Sequence[str], **environment: str) -> dict[str, Any]:
    """`ladderlm bench` in a process with that environment; its JSON."""
    command = [
        sys.executable,
        "-m",
        "ladderlm",
        "bench",
        str(model),
        "--device",
        "cpu",
        "--threads",
        THREADS,
        "--json",
        *settings,
    ]
    command += [word for peer in peers for word in ("--against", peer)]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise LadderError(f"bench ended with exit code {done.returncode}", where=model.name, cure="see what it said")
    return dict(json.loads(done.stdout))


def missing(folder: str | None) -> str:
    """Why llama.cpp is not compared with; empty where it is."""
    before = os.environ.get(LLAMA_FOLDER)
    if folder is not None:
        os.environ[LLAMA_FOLDER] = folder
    try:
        find_tool("llama-batched-bench"), find_tool("llama-bench")
    except NotFound as error:
        return str(error)
    finally:
        os.environ.pop(LLAMA_FOLDER, None)
        os.environ.update({LLAMA_FOLDER: before} if before is not None else {})
    return ""


def line(found: Mapping[str, Any]) -> dict[str, Any]:
    """One model's figures, column by column: ours, each peer's, times faster, share of the bandwidth or the peak."""
    mine, *peers = found["systems"]
    table: dict[str, Any] = {}
    for column, figure in mine["figures"].items():
        row = {"ladderlm": round(figure["median"], 3 if figure["unit"] == "s" else 1)}
        for peer in peers:
            if column in peer["figures"]:
                row[peer["name"]] = round(peer["figures"][column]["median"], 1)
                ratio = peer["ratios"][column]
                row[f"{peer['name']}_ratio"] = round(ratio["median"], 3)
                row[f"{peer['name']}_ratio_range"] = [round(ratio["low"], 3), round(ratio["high"], 3)]
        if column in mine.get("shares", {}):
            row["share"] = round(mine["shares"][column]["median"], 3)
        table[column] = row
    about = {peer["name"]: peer["about"] for peer in peers}
    return {
        "work": table, "peers": about, "ceiling": found["ceiling"], "fresh": found["fresh"],
        "weight_bytes": found["weight_bytes"], "parameters": found["parameters"], "rounds": found["rounds"],
        "instructions": found["instructions"],
    }  # fmt: skip


def bars(model: str, kind: str, tier: str, work: Mapping[str, Any]) -> dict[str, bool]:
    """What the figures of one model must reach."""
    if "llama.cpp_ratio" not in work["decode_128"]:
        return {}
    wanted = (
        AVX2 if tier == "avx2" else NATIVE_15M if model == "15m" else NATIVE_INT4 if kind[1] == "4" else NATIVE_INT8
    )
    met = {}
    for column, least in zip(COLUMNS, (wanted[0], *wanted), strict=True):
        ratio, share = work[column]["llama.cpp_ratio"], work[column].get("share", 0.0)
        words, enough = f"at least {least} x llama.cpp", column.startswith("decode_1") and tier == "native"
        if enough:
            words += f" or {ENOUGH:.0%} of the bandwidth"
        met[f"{model} {kind} {tier} {column}: {words}"] = ratio >= least or (enough and share >= ENOUGH)
    if tier == "native" and model in SHARES:
        for column in COLUMNS[:2]:
            share = work[column]["share"]
            met[f"{model} {kind} {column}: at least {SHARES[model]:.0%} of the bandwidth"] = share >= SHARES[model]
    return met


def settings(name: str, minute: bool) -> list[str]:
    """Of `bench`: as many rounds as fit into a time that all models together have."""
    columns = COLUMNS[:3:2] if minute else COLUMNS
    rounds, tokens = ("1", "4") if minute else ("5", "16" if name == "1.1b" else "48")
    only = [word for column in columns for word in ("--only", column)]
    return ["--rounds", rounds, "--tokens", tokens, "--seconds", str(SECONDS.get(name, 30)), *only]


def measure(minute: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"threads": int(THREADS)}
    tiers = {"native": os.environ.get(LLAMA_FOLDER), "avx2": os.environ.get(AVX2_FOLDER, "")}
    met: dict[str, bool] = {}
    with scratch() as folder:
        wanted = [("15m", "Q4_0")] if minute else [(n, k) for n in RANDOM for k in random_gguf.FILE_TYPES]
        models = [] if minute else [("default", "Q4_1", open_model(DEFAULT_MODEL).path)]
        models += [(name, kind, random_model(folder, name, kind)) for name, kind in wanted]
        for tier, tools in tiers.items():
            why = missing(tools) if tier == "native" or tools else f"name the tools' folder in {AVX2_FOLDER}"
            environment = {"LADDERLM_ISA": "avx2", LLAMA_FOLDER: tools or ""} if tier == "avx2" else {}
            result[tier] = {"llama_cpp_left_out": why} if why else {}
            for name, kind, path in models:
                if (name, tier) == ("1.1b", "avx2"):  # llama.cpp would take minutes
                    continue
                found = line(bench(path, () if why else ("llama.cpp",), settings(name, minute), **environment))
                if tier == "avx2" and found["instructions"] != "avx2":
                    raise LadderError(f"it ran with {found['instructions']}", where="LADDERLM_ISA=avx2")
                result[tier][f"{name} {kind}"] = found
                met |= {} if minute else bars(name, kind, tier, found["work"])
        result["openvino"] = {"left_out": "not in a minute"} if minute else openvino(folder, met)
    return result if minute else {**result, "bars": met}


def openvino(folder: Path, met: dict[str, bool]) -> dict[str, Any]:
    """Prefill of the default model at Q8_0 and Q4_0 against OpenVINO GenAI."""
    if not os.environ.get(OPENVINO_PYTHON):
        return {"left_out": f"name a Python that has openvino_genai in {OPENVINO_PYTHON}"}
    files, found = open_model(DEFAULT_MODEL), {}
    for kind in ("Q8_0", "Q4_0"):
        path = gguf.write(files, folder / f"default-{kind}.gguf", kind, replace=True)
        for kept in ("auto", "int8"):  # float16; and as OpenVINO keeps them
            settings = ("--rounds", "5", "--tokens", "4", "--only", "prefill_512", "--kv-cache-dtype", kept)
            found[f"{kind}, {kept}"] = line(bench(path, ("openvino",), settings))
            ratio = found[f"{kind}, {kept}"]["work"]["prefill_512"]["openvino_ratio"]
            words = "with keys and values in int8, as it has them, " if kept == "int8" else ""
            met[f"default {kind} prefill_512: {words}at least 1.3 x OpenVINO GenAI"] = ratio >= 1.3
    return found
