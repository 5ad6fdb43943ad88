"""The default model against llama.cpp and transformers on the same weights.

1. Weights dequantised to F32 in a GGUF file: 64 greedy tokens after 20 prompts, ours against llama.cpp (xllamacpp).
2. The quantised file itself, teacher-forced: mean KL divergence and top-1 agreement against fp32, ours; and
   llama.cpp's own, measured by its perplexity tool on the same text, when that tool is on PATH (or LLAMA_CPP_BIN).
3. Our exported folder in transformers: the largest difference of any logit.
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
from ladderlm.data.collect import python_corpus
from ladderlm.errors import MissingExtra, NotFound
from ladderlm.models import ModelFiles, open_model, save_model
from ladderlm.models.catalogue import DEFAULT_MODEL
from ladderlm.types import Sampling

PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village,", "The three laws of motion state that",
    "To make a cup of tea, first", "def fibonacci(n):\n", "The most important thing about learning is",
    "In the year 2050, cities will", "The difference between a cat and a dog is", "Water boils at",
    "She opened the letter and read:", "The history of the Roman Empire begins", "A good night's sleep helps because",
    "import numpy as np\n\n", "The recipe calls for two eggs,", "My favourite book is", "Photosynthesis is the process",
    "The sun rose over the mountains and", "Dear customer, we are sorry", "There are seven days in a week:",
    "The train to Berlin leaves at",
)  # fmt: skip
NEW, CHUNK = 64, 512


def f32_gguf(path: Path, out: Path) -> None:
    """The same file with every tensor dequantised to F32 by the `gguf` package."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.file_type") or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(path: Path, prompts: Sequence[str]) -> list[str]:
    files = open_model(str(path))
    start = [files.tokenizer.document_start_id]
    out = []
    with engine.load(files) as model:
        for prompt in prompts:
            sampling = Sampling(temperature=0, max_tokens=NEW, stop_ids=files.tokenizer.stop_ids)
            ids = [*start, *files.tokenizer.encode(prompt)]
            out.append(files.tokenizer.decode([i for d in model.generate(ids, sampling) for i in d.ids]))
    return out


def theirs(path: Path, files: ModelFiles, prompts: Sequence[str]) -> list[str]:
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "test") from None

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 1024
    params.cpuparams.n_threads = os.cpu_count() or 1
    params.warmup = False
    server = xllamacpp.Server(params)
    out = []
    for prompt in prompts:
        ids = [files.tokenizer.document_start_id, *files.tokenizer.encode(prompt)]
        body = {"prompt": ids, "n_predict": NEW, "temperature": 0, "cache_prompt": False}
        out.append(str(server.handle_completions(body)["choices"][0]["text"]))
    return out


def divergence(text: str, tokens: int) -> dict[str, Any]:
    """Mean KL(fp32 || engine on the quantised file) in nats and top-1 agreement, teacher-forced."""
    from ladderlm.engine.reference import ReferenceDecoder

    files = open_model(DEFAULT_MODEL)
    ids = files.tokenizer.encode(text)
    reference = ReferenceDecoder(files.arch, files.weights)
    total, same, count = 0.0, 0, 0
    with engine.load(files) as model:
        for at in events.track(range(0, tokens, CHUNK), "divergence", unit="chunks"):
            window = ids[at : at + CHUNK]
            p, q = (_log_softmax(m.logits(window)) for m in (reference, model))
            total += float((np.exp(p) * (p - q)).sum())
            same += int((p.argmax(1) == q.argmax(1)).sum())
            count += len(window)
    return {"tokens": count, "mean_kl": total / count, "top_1_agreement": same / count}


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    x = logits_TV.astype(np.float64)
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def llama_divergence(path: Path, f32: Path, text: str, work: Path) -> dict[str, Any] | None:
    """The same figures of llama.cpp's own run of the quantised file, by its perplexity tool."""
    tool = shutil.which("llama-perplexity", path=os.environ.get("LLAMA_CPP_BIN")) or shutil.which("llama-perplexity")
    if tool is None:
        return None
    (work / "text.txt").write_text(text)
    base = [tool, "-f", str(work / "text.txt"), "-c", str(CHUNK), "-t", str(os.cpu_count()), "--kl-divergence-base"]
    base += [str(work / "logits")]
    subprocess.run([*base, "-m", str(f32)], check=True, capture_output=True)
    done = subprocess.run([*base, "-m", str(path), "--kl-divergence"], check=True, capture_output=True, text=True)
    said = done.stdout + done.stderr
    kl, top = re.search(r"Mean\s+KLD:\s*([\d.]+)", said), re.search(r"Same top p:\s*([\d.]+)", said)
    if not (kl and top):
        raise NotFound("llama-perplexity printed no divergence", where=tool)
    return {"mean_kl": float(kl[1]), "top_1_agreement": float(top[1]) / 100}


def in_transformers(files: ModelFiles, work: Path) -> float:
    """max |logit difference| over five prompts between transformers on our exported folder and our engine."""
    import torch
    import transformers

    tensors = {name: files.weights.float32(name) for name in files.weights.names()}
    generation, lineage = dict(files.generation), dict(files.lineage)
    folder = work / "folder"
    save_model(
        folder, files.arch, tensors, files.tokenizer, files.template, generation=generation, lineage=lineage
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    worst = 0.0
    with engine.load(open_model(str(folder))) as model:
        for prompt in PROMPTS[:5]:
            ids = [files.tokenizer.document_start_id, *files.tokenizer.encode(prompt)]
            with torch.no_grad():
                wanted = theirs(torch.tensor([ids])).logits[0].numpy()
            worst = max(worst, float(np.abs(model.logits(ids) - wanted).max()))
    return worst


def measure(minute: bool) -> dict[str, Any]:
    files = open_model(DEFAULT_MODEL)
    text = "\n\n".join(r["text"] for r in python_corpus("docs")[:40])
    tokens = 1024 if minute else 5120
    bars: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        mine = divergence(text, tokens)
        difference = in_transformers(files, work)
        bars["transformers: max |logit difference| < 1e-3"] = difference < 1e-3
        figures: dict[str, Any] = {"quantised_against_fp32": mine, "transformers_max_logit_difference": difference}
        if not minute:
            f32 = work / "f32.gguf"
            f32_gguf(files.path, f32)
            pairs = zip(ours(f32, PROMPTS), theirs(f32, files, PROMPTS), strict=True)
            same = sum(a == b for a, b in pairs)
            figures["greedy_64_same_as_llama_cpp_on_f32"] = f"{same} of {len(PROMPTS)}"
            bars["at least 19 of 20 greedy continuations as llama.cpp's"] = same >= 19
            ids = files.tokenizer.encode(text)[: 2 * tokens]  # its tool scores the second half of each chunk only
            peer = llama_divergence(files.path, f32, files.tokenizer.decode(ids), work)
            figures["llama_cpp_quantised_against_fp32"] = peer or "llama-perplexity not found: set LLAMA_CPP_BIN"
            if peer:
                bars["mean KL no worse than llama.cpp's"] = mine["mean_kl"] <= peer["mean_kl"]
                bars["top-1 agreement no worse"] = mine["top_1_agreement"] >= peer["top_1_agreement"]
    return {**figures, "bars": bars}
