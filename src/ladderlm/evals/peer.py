"""A program of its own, for another library's Python too: `python peer.py transformers|openvino MODEL THREADS`.

Reads one piece of work a line (JSON: kind, prompts, tokens) and writes one {"figure": ...} a line, null for work it
has no door for. It imports nothing of LadderLM, which need not be installed where it runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


class Transformers:
    """`transformers` in float32: its bfloat16 is slower on a CPU."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._torch, path = torch, Path(model)
        place = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
        folder = str(path.parent if place else path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **place)
        self._model: Any = loaded.eval()
        self.about = {"version": f"transformers {transformers.__version__}, torch {torch.__version__}, float32"}

    def measure(self, kind: str, prompts: list[list[int]], tokens: int) -> float | None:
        if kind not in ("prefill", "decode", "first"):
            return None
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            start = time.perf_counter()
            out = self._model(ids, use_cache=True, logits_to_keep=1)
            read = time.perf_counter() - start
            if kind != "decode":
                return read if kind == "first" else ids.numel() / read
            start = time.perf_counter()
            for at in range(tokens):
                step = ids[:, at % ids.shape[1]][:, None]
                out = self._model(step, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            return len(prompts) * tokens / (time.perf_counter() - start)


class OpenVINO:
    """OpenVINO GenAI's pipeline, which reads GGUF files and folders of its own. It samples, and schedules."""

    def __init__(self, model: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self._ov, self._genai = openvino, openvino_genai
        self._pipe: Any = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
        self.about = {"version": f"OpenVINO GenAI {openvino_genai.__version__}"}

    def measure(self, kind: str, prompts: list[list[int]], tokens: int) -> float | None:
        import numpy

        if kind == "answers" or len(prompts) > 1:  # it takes several prompts as text alone
            return None
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens if kind == "decode" else 1
        config.ignore_eos, config.do_sample = True, False
        ids = self._ov.Tensor(numpy.array(prompts, numpy.int64))
        figures = self._pipe.generate(ids, config).perf_metrics
        first = float(figures.get_ttft().mean) / 1000
        if kind != "decode":
            return first if kind == "first" else len(prompts[0]) / first
        return 1000 / float(figures.get_tpot().mean)


PEERS: dict[str, Any] = {"transformers": Transformers, "openvino": OpenVINO}
CURES = {
    "transformers": "pip install transformers gguf 'ladderlm[train]'",
    "openvino": "pip install openvino-genai, or name a Python that has it in LADDERLM_BENCH_OPENVINO",
}


def main(name: str, model: str, threads: str) -> None:
    def say(data: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(data) + "\n")
        sys.stdout.flush()

    try:
        peer = PEERS[name](model, int(threads))
        say(peer.about)
        for line in sys.stdin:
            say({"figure": peer.measure(**json.loads(line))})
    except ImportError as error:
        say({"error": str(error), "cure": CURES[name]})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
