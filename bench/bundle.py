"""The two files of the default model in an environment that holds numpy alone: what they write, size, speed, memory.

1. The float32 form: 64 greedy tokens after 20 prompts, against the float32 reference on the same weights.
2. The float16 form: the same against the engine on a model folder of the same rounded weights.
The reference reads prompt and continuation at once: each token must be its likeliest after what stands before it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.parity import NEW, PROMPTS
from ladderlm import engine, events
from ladderlm.convert import bundle
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.models import ModelFiles, open_model, save_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.models.folder import eager
from ladderlm.types import Sampling

_MEASURED = (
    "import atexit, resource, runpy, sys; sys.argv = sys.argv[1:];"
    "atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr));"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def numpy_alone(path: Path) -> Path:
    """The interpreter of a fresh virtual environment whose site-packages hold a link to numpy and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True)
    site = next(path.glob("lib/python*/site-packages"))
    home = Path(np.__file__).resolve().parents[1]
    for name in ("numpy", "numpy.libs"):
        if (home / name).exists():
            (site / name).symlink_to(home / name)
    return path / "bin" / "python"


def said_by_bundle(python: Path, folder: Path, prompts: tuple[str, ...]) -> tuple[list[dict[str, Any]], int]:
    """The answers, and the most memory the process held, in bytes."""
    lines = "".join(json.dumps({"text": p, "tokens": NEW}) + "\n" for p in prompts)
    command = [str(python), "-I", "-c", _MEASURED, str(folder / "run.py"), "--json-logits"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], int(done.stderr.split()[-1]) * 1024


def as_reference(files: ModelFiles, told: list[dict[str, Any]]) -> int:
    """How many continuations are the reference's own."""
    reference, stop = ReferenceDecoder(files.arch, files.weights), files.tokenizer.stop_ids
    same = 0
    for answer in events.track(told, "reference", unit="texts"):
        ids, greedy = answer["ids"], answer["greedy"]
        best = reference.logits([*ids, *greedy])[len(ids) - 1 :].argmax(1).tolist()
        same += best[: len(greedy)] == greedy and (len(greedy) == NEW or best[-1] in stop)
    return same


def as_engine(files: ModelFiles, told: list[dict[str, Any]]) -> int:
    """How many continuations are those of the engine on `files`."""
    sampling = Sampling(temperature=0, max_tokens=NEW, stop_ids=files.tokenizer.stop_ids)
    with engine.load(files) as model:
        return sum(
            [i for delta in model.generate(answer["ids"], sampling) for i in delta.ids] == answer["greedy"]
            for answer in told
        )


def start_seconds(python: Path, folder: Path) -> float:
    """From the command to its first token, median of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        command = [str(python), "-I", str(folder / "run.py"), "--tokens", "1", "Hello"]
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def half(files: ModelFiles, path: Path) -> ModelFiles:
    """The model with weights rounded to float16, as a folder."""
    save_model(
        path, files.arch, eager(files.weights), files.tokenizer, files.template,
        generation=files.generation, lineage=files.lineage, dtype="float16",
    )  # fmt: skip
    return open_model(str(path))


def data_bytes(folder: Path) -> int:
    """What the parameters take in the parameter file."""
    with (folder / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return (folder / "model.safetensors").stat().st_size - 8 - header


def measure(minute: bool) -> dict[str, Any]:
    files = open_model(DEFAULT_MODEL)
    prompts = PROMPTS[:2] if minute else PROMPTS
    bars: dict[str, bool] = {}
    figures: dict[str, Any] = {"parameters": files.arch.parameters, "prompts": len(prompts)}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        python = numpy_alone(work / "venv")
        for precision in ("float16",) if minute else ("float32", "float16", "int8"):
            folder = bundle.write(files, work / precision, precision)
            told, memory = said_by_bundle(python, folder, prompts)
            tokens = sum(len(answer["greedy"]) for answer in told)
            figures[precision] = {
                "parameter_file_bytes": (folder / "model.safetensors").stat().st_size,
                "seconds_to_first_token": round(start_seconds(python, folder), 2),
                "tokens_per_second": round(tokens / sum(answer["seconds"] for answer in told), 1),
                "peak_memory_bytes": memory,
            }
            if precision == "float32":
                same = as_reference(files, told)
                figures[precision]["greedy_64_as_reference"] = same
                bars["float32: all greedy continuations as the reference's"] = same == len(told)
            if precision == "float16":
                same = as_engine(half(files, work / "half"), told)
                figures[precision]["greedy_64_as_engine"] = same
                bars["float16: all greedy continuations as the engine's"] = same == len(told)
                bars["float16: two bytes a parameter"] = data_bytes(folder) == 2 * files.arch.parameters
                bars["float16: in 1 GB of memory"] = memory < 10**9
                bars["at most 500 lines of code"] = (folder / "run.py").read_text().count("\n") <= 500
    return {**figures, "bars": bars}
