"""Our GGUF files of the default model in llama.cpp.

1. Exported at F16 and continued by llama.cpp (xllamacpp), greedily, after 200 prompts: how often our engine, on the
   source and given the same tokens before, finds the same token likeliest.
2. Perplexity of 200 KB of held-out text on that file and on the default model's own Q4_1 file: ours against
   llama.cpp's perplexity tool (when it is on PATH or in LLAMA_CPP_BIN), the same windows, the second half of each
   scored.
3. Exports at F16, Q8_0, Q4_0 and Q4_K: their sizes, and our perplexity on a part of that text.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm import engine, events
from ladderlm.convert import gguf
from ladderlm.data.collect import python_corpus
from ladderlm.errors import MissingExtra, NotFound
from ladderlm.evals.intervals import bootstrap
from ladderlm.models import ModelFiles, open_model
from ladderlm.models.catalogue import DEFAULT_MODEL

HELD_OUT = Path(__file__).resolve().parents[2] / "shared" / "data" / "corpus" / "wikitext-2.valid.txt"
PROMPT, NEW, WINDOW = 32, 16, 512


def continued(path: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    """llama.cpp's greedy continuations."""
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "test") from None

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = PROMPT + NEW + 8
    params.cpuparams.n_threads = os.cpu_count() or 1
    params.warmup = False
    server = xllamacpp.Server(params)
    found = []
    for ids in events.track(prompts, "llama.cpp", unit="prompts"):
        body = {"prompt": ids, "n_predict": NEW, "temperature": 0, "cache_prompt": False, "n_probs": 1}
        content = server.handle_completions(body)["choices"][0]["logprobs"]["content"]
        found.append([int(token["id"]) for token in content])
    return found


def agreement(files: ModelFiles, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> dict[str, Any]:
    """The share of tokens that our engine finds likeliest too; the interval is over prompts."""
    shares, tokens, same = [], 0, 0
    with engine.load(files, exact=True) as model:  # two files are compared, not two roundings of activations
        for prompt, answer in zip(prompts, answers, strict=True):
            likeliest = model.logits([*prompt, *answer])[len(prompt) - 1 : -1].argmax(1)
            hits = int((likeliest == np.array(answer)).sum())
            shares.append(hits / len(answer))
            tokens, same = tokens + len(answer), same + hits
    found = bootstrap(shares)
    return {"prompts": len(prompts), "tokens": tokens, "share": same / tokens, "interval": [found.low, found.high]}


def perplexity(path: Path, ids: Sequence[int]) -> float:
    """Over whole windows; a token is scored when at least half a window stands before it."""
    total, count, half = 0.0, 0, WINDOW // 2
    with engine.load(open_model(str(path))) as model:
        for at in events.track(range(0, len(ids) - WINDOW + 1, WINDOW), "perplexity", unit="windows"):
            window = np.array(ids[at : at + WINDOW])
            x = model.logits(window.tolist())[half:-1].astype(np.float64)
            x -= x.max(1, keepdims=True)
            scored = x[np.arange(len(x)), window[half + 1 :]] - np.log(np.exp(x).sum(1))
            total, count = total - float(scored.sum()), count + len(scored)
    return float(np.exp(total / count))


def llama_perplexity(path: Path, text: str, work: Path) -> tuple[float, int] | None:
    """llama.cpp's perplexity and how many windows it scored; None without its tool."""
    tool = shutil.which("llama-perplexity", path=os.environ.get("LLAMA_CPP_BIN")) or shutil.which("llama-perplexity")
    if tool is None:
        return None
    (work / "text.txt").write_text(text, encoding="utf-8")
    command = [tool, "-m", str(path), "-f", str(work / "text.txt"), "-c", str(WINDOW), "-t", str(os.cpu_count())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = done.stdout + done.stderr
    value, windows = re.search(r"PPL = ([\d.]+)", said), re.search(r"over (\d+) chunks", said)
    if not (value and windows):
        raise NotFound("llama-perplexity printed no perplexity", where=tool)
    return float(value[1]), int(windows[1])


def measure(minute: bool) -> dict[str, Any]:
    files = open_model(DEFAULT_MODEL)
    text = "\n\n".join(r["text"] for r in python_corpus("docs")[:80])
    ids = files.tokenizer.encode(text)
    count = 10 if minute else 200
    starts = np.linspace(0, len(ids) - PROMPT, count).astype(int)
    prompts = [ids[at : at + PROMPT] for at in starts]
    bars: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = {kind: gguf.write(files, work / f"{kind}.gguf", kind) for kind in ("F16", "Q8_0", "Q4_0", "Q4_K")}
        agreed = agreement(files, prompts, continued(paths["F16"], prompts))
        bars["top-1 agreement with llama.cpp on the F16 export at least 99.5 %"] = agreed["share"] >= 0.995
        figures: dict[str, Any] = {"f16_top_1_agreement": agreed}
        figures["bytes"] = {kind: path.stat().st_size for kind, path in paths.items()}
        if not HELD_OUT.exists():
            return {**figures, "perplexity": "no held-out text here", "bars": bars}
        held_out = HELD_OUT.read_bytes()[: 8_000 if minute else 200_000].decode("utf-8", "ignore")
        scored = files.tokenizer.encode(held_out)
        part = scored[: (1 if minute else 5) * WINDOW]
        figures["perplexity_by_kind"] = {kind: perplexity(path, part) for kind, path in paths.items()}
        for name, path in (("f16", paths["F16"]), ("q4_1", files.path)):
            mine, peer = perplexity(path, scored), llama_perplexity(path, held_out, work)
            found: dict[str, Any] = {"bytes": len(held_out.encode()), "windows": len(scored) // WINDOW, "ours": mine}
            if peer is not None:
                found |= {"llama_cpp": peer[0], "ratio": mine / peer[0]}
                bars[f"{name}: the same windows"] = peer[1] == len(scored) // WINDOW
                bars[f"{name}: perplexity within 0.5 % of llama.cpp's"] = abs(mine / peer[0] - 1) < 0.005
            figures[f"{name}_perplexity"] = found
    return {**figures, "bars": bars}
