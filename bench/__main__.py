"""`./ladder prove NAME [--minute] [--out FILE]`.

A full run writes bench/results/NAME.json with the commit, the machine, the versions, wall and CPU seconds and the
figures; README quotes only those files. `--minute` runs a version of at most a minute (CI does) and writes nothing
unless `--out` says where.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ladderlm.cli.show import progress
from ladderlm.errors import LadderError

ROOT = Path(__file__).resolve().parents[1]
# name -> what it proves; each is a module here with `measure(minute: bool) -> dict` whose "bars" are name -> bool.
BENCHES = {
    "startup": "the command line starts in under 0.5 s of CPU time, without torch",
    "clients": "LangChain, LlamaIndex, llm, lm-eval and the official clients run unmodified against the server",
    "schemas": "500 random JSON schemas: 95 % answered whole within 512 tokens, all of these valid, masks nearly free",
    "parity": "the default model agrees with llama.cpp and transformers on the same weights",
    "gguf": "llama.cpp runs our GGUF exports as our engine runs the source",
    "speed": "tokens per second of the engine on the default model",
    "gpu": "a random 8B on a GPU: 60 % of its bandwidth at batch 1, 5 times transformers at batch 64",
    "accuracy": "8-bit activations: perplexity within 0.3 % of llama.cpp's, float32's choices at least as often",
    "engine": "the engine against llama.cpp natively and at AVX2, and against OpenVINO GenAI in prefill",
    "warm": "the engine starts within 1.5 s, compiles within 20 s, and keeps to its memory",
    "busy": "beside other busy programs on its cores the engine falls no further than its share",
    "turns": "the second turn of a conversation starts in at most 15 % of the time of the first",
    "sizes": "tokens per second, memory and loading of random models from 15 M to 7 B weights",
    "quantise": "int4 folders: at most 3 % more perplexity, 34 % of 16 bits, calibrated better than rounding",
    "bundle": "the two files, with numpy alone, write what the reference and the engine write",
    "speculation": "guesses: edits and summaries at least 1.5 times as fast, free chat never slowed",
    "adapter": "a LoRA of rank 8 per request costs at most 15 % of decode",
    "soak": "300,000 short requests with cancellations: the engine leaks nothing and starves nobody",
    "load": "8 and 32 clients: 2.5 times llama-server's tokens a second, above capacity only 429s, memory stays",
    "chaos": "20 SIGKILLs amid 100 streams: nothing acknowledged is lost; deaf and vanished clients block nobody",
    "pii": "personal data: F1 of each kind at least that of presidio's patterns",
    "prepare": "clean + dedup at 6 MB a CPU-second, 10 times datatrove + datasketch; recall 0.95, precision 0.98",
    "crash": "20 SIGKILLs at random moments of a training run: it always goes on, to the same bits",
    "domain": "continued pretraining on medical texts lowers their bits per byte; what is forgotten is told",
    "languages": "one small model per language: the fewest bits tell a sentence's language, 95 % right",
    "timetoloss": "1.3 M weights, 5 minutes of a core: 2.5 times as fast as nanoGPT's recipe to its final loss",
    "timetoloss_large": "11 M weights, 20 minutes of a core: twice as fast as nanoGPT's recipe to its final loss",
    "trainspeed": "pretraining reads 1.2 times as many tokens a second as transformers' Trainer, at equal shape",
    "objectives": "masked tokens, next sentences and cut-out spans are learnt by 3 M parameters in 15 minutes",
    "plan": "memory and CPU time of five pretrainings, foretold within 15 % at the median and 30 % at worst",
    "scaling": "the loss of a pretraining 4 times larger than any in the fit, foretold within 3 %",
    "tokenizer": "byte-level BPE trains 8 times and encodes 10 times as fast as tokenizers, with equal ids",
    "finetune": "LoRA at 2.2 times the tokens a second of trl + peft; QLoRA in half of LoRA's memory",
    "tasks": "feelings, names, instructions: LoRA beats zero- and few-shot, tuned prompts and prefixes zero-shot",
    "dpo": "DPO: 95 % of polite pairs; more than half of the harmless pairs of one length",
    "grpo": "GRPO: 20 points more on unseen arithmetic and on answers that must meet a JSON schema",
    "ppo": "PPO: more reward at a divergence below its target, and no less from a judge it never sees",
    "harm": "alignment on harmless pairs: fewer harmful answers on HarmBench, and what XSTest says it costs",
    "climb": "climb on SST-2 ends within 20 minutes, and its recommendation agrees with its table",
    "shuffled": "labels that mean nothing earn the word helped in at most 1 of 20 runs",
    "quickstart": "a clean clone climbs all three rungs within 12 minutes after installation",
}
PACKAGES = ["ladderlm", "numpy", "numba", "torch", "transformers", "tokenizers", "safetensors", "xllamacpp", "peft",
            "trl"]  # fmt: skip


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": memory and round(memory, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "src") else "")


def cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def main() -> int:
    listed = "\n".join(f"  {name:<11} {text}" for name, text in BENCHES.items())
    parser = argparse.ArgumentParser(
        "ladder prove", description=f"Measures a bar:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--minute", action="store_true", help="a version of at most a minute; writes no result")
    parser.add_argument("--out", type=Path, help="where to write the result")
    args = parser.parse_args()
    module = importlib.import_module(f"bench.{args.name}")
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        with progress():
            figures = module.measure(args.minute)
    except LadderError as error:
        print(f"prove {args.name}: {error}", file=sys.stderr)
        return 1
    result = {
        "name": args.name,
        "proves": BENCHES[args.name],
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        **figures,
    }
    text = json.dumps(result, indent=2)
    print(text)
    out = args.out or (None if args.minute else ROOT / "bench" / "results" / f"{args.name}.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    missed = [name for name, met in figures.get("bars", {}).items() if met is False]
    if missed:
        print("bars missed: " + "; ".join(missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
