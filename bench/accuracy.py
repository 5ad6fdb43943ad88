"""What 8-bit activations cost: our engine and llama.cpp on the same quantised files.

1. Perplexity of held-out text on the default model's Q4_1 file and on its exports at Q8_0 and Q4_0: the same windows,
   the second half of each scored.
2. Teacher-forced: over 200 prompts, how often each finds the token likeliest that float32 arithmetic on the same
   weights does; the interval of the difference is over prompts (paired bootstrap).

LLAMA_CPP_BIN names the folder of llama-perplexity, built for this processor: builds for others round otherwise.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import gguf as held_out
from bench.engine import THREADS
from ladderlm import engine, events
from ladderlm.convert import gguf
from ladderlm.engine.plain import Widened
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.errors import FormatError, NotFound
from ladderlm.evals.intervals import bootstrap
from ladderlm.evals.peers import find_tool
from ladderlm.models import open_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import FloatArray

INSTRUCTIONS = held_out.HELD_OUT.parents[1] / "instruct" / "llms-from-scratch-instructions.json"
PROMPTS, LENGTH = 200, 128  # windows of the instructions with their answers, and tokens of each
BYTES = {"Q4_1": 60_000, "Q8_0": 25_000, "Q4_0": 25_000}  # of the held-out text
NEAR = 0.003  # of llama.cpp's perplexity


def perplexities(path: Path, size: int, work: Path) -> dict[str, Any]:
    text = held_out.HELD_OUT.read_bytes()[:size].decode("utf-8", "ignore")
    ids = open_model(str(path)).tokenizer.encode(text)
    peer = held_out.llama_perplexity(path, text, work)
    if peer is None:
        raise NotFound("llama-perplexity is not there", cure="name its folder in LLAMA_CPP_BIN")
    mine, windows = held_out.perplexity(path, ids), len(ids) // held_out.WINDOW
    if peer[1] != windows:
        raise FormatError(f"llama.cpp cut the text into {peer[1]} windows, not {windows}", where=str(path))
    return {"windows": windows, "ours": mine, "llama_cpp": peer[0], "ratio": mine / peer[0]}


class Likeliest(NamedTuple):
    """`ids_PT`: the windows; `chosen_PS`: what llama.cpp found likeliest after each token of their second halves."""

    ids_PT: np.ndarray
    chosen_PS: np.ndarray


def llama_likeliest(path: Path, text: str, prompts: int, work: Path) -> Likeliest:
    """By the log-probabilities that llama-perplexity saves: a row is a scale, a least value, then 16 bits each."""
    (work / "text.txt").write_text(text, encoding="utf-8")
    tool, saved = find_tool("llama-perplexity"), work / "logits"
    command = [tool, "-m", str(path), "-f", str(work / "text.txt"), "-c", str(LENGTH), "--chunks", str(prompts)]
    subprocess.run([*command, "-t", THREADS, "--save-all-logits", str(saved)], check=True,
                   capture_output=True)  # fmt: skip
    head = np.fromfile(saved, np.int32, 5)
    length, vocab, count = (int(i) for i in head[2:])
    if head[:2].tobytes() != b"_logits_" or (length, count) != (LENGTH, prompts):
        raise FormatError(f"{count} windows of {length} tokens, not {prompts} of {LENGTH}", where=str(saved))
    ids = np.fromfile(saved, np.int32, length * count, offset=20).reshape(count, length)
    rows, width = length - 1 - length // 2, 2 * ((vocab + 1) // 2) + 4
    values = np.memmap(saved, np.uint16, "r", 20 + ids.nbytes, (count, rows, width))
    return Likeliest(ids, np.stack([window[:, 4 : 4 + vocab].argmax(1) for window in values]))


def same(ids_PT: np.ndarray, logits: Callable[[Sequence[int]], FloatArray]) -> np.ndarray:
    """What `logits` finds likeliest where Likeliest says what llama.cpp does."""
    windows = events.track(ids_PT.tolist(), "agreement", unit="prompts")
    return np.stack([logits(ids)[LENGTH // 2 : -1].argmax(1) for ids in windows])


def agreement(path: Path, prompts: int, work: Path) -> dict[str, Any]:
    records = json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))
    text = "\n\n".join("\n".join(r[k] for k in ("instruction", "input", "output") if r[k]) for r in records)
    files = open_model(str(path))
    theirs = llama_likeliest(path, text, prompts, work)
    reference = ReferenceDecoder(files.arch, Widened(files.weights))
    wanted = same(theirs.ids_PT, reference.logits)
    with engine.load(files) as model:
        mine = same(theirs.ids_PT, model.logits)
    shares = [(found == wanted).mean(1) for found in (mine, theirs.chosen_PS)]
    difference = bootstrap(list(shares[1]), list(shares[0]))
    return {
        "prompts": prompts, "tokens": int(wanted.size), "ours": float(shares[0].mean()),
        "llama_cpp": float(shares[1].mean()), "difference": difference.mean,
        "interval": [difference.low, difference.high],
    }  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    files, bars = open_model(DEFAULT_MODEL), dict[str, bool]()
    for needed in (held_out.HELD_OUT, INSTRUCTIONS):
        if not needed.exists():
            raise NotFound("no held-out text", where=str(needed))
    with tempfile.TemporaryDirectory() as folder:
        work, found = Path(folder), dict[str, Any]()
        for kind, size in BYTES.items():
            if minute and kind != "Q4_1":
                continue
            path = files.path if kind == "Q4_1" else gguf.write(files, work / f"{kind}.gguf", kind)
            found[kind] = perplexities(path, 8_000 if minute else size, work)
            bars[f"{kind}: perplexity within 0.3 % of llama.cpp's"] = abs(found[kind]["ratio"] - 1) < NEAR
        agreed = agreement(files.path, 10 if minute else PROMPTS, work)
    bars["agrees with float32 at least as often as llama.cpp"] = agreed["ours"] >= agreed["llama_cpp"]
    result = {"perplexity": found, "top_1_agreement_with_float32": agreed}
    return result if minute else {**result, "bars": bars}
