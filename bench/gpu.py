"""A GPU's two bars on a random model of Llama 3's 8B shape: bytes read per step at batch 1, and throughput at 64.

The share is that of the bandwidth measured here by copying; the other program is transformers' own `generate` on the
same shape, dtype and lengths.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ladderlm.engine.backend import Piece
from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Blocks
from ladderlm.types import FloatArray

PROMPT, BATCH = 128, 64
LLAMA = Architecture(
    vocab_size=128256, dim=4096, layers=32, heads=32, kv_heads=8, head_dim=128, hidden=14336, context_length=8192,
    rope_theta=500000.0, tied=False,
)  # fmt: skip


class RandomWeights:
    """Weights of any shape out of one row of random numbers: what they are does not change how long they take."""

    def __init__(self, arch: Architecture) -> None:
        self._shapes = arch.tensor_shapes()
        most = max(int(np.prod(shape)) for shape in self._shapes.values())
        self._values = np.random.default_rng(0).standard_normal(most, np.float32)
        self._values *= np.float32(0.02)

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def float32(self, name: str) -> FloatArray:
        shape = self._shapes[name]
        return np.ones(shape, np.float32) if len(shape) == 1 else self._values[: np.prod(shape)].reshape(shape)

    def blocks(self, name: str) -> Blocks | None:
        return None


def measure(minute: bool) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError("no torch, so no GPU to measure", cure="pip install ladderlm[train]") from None
    if not torch.cuda.is_available():
        raise UsageError(f"torch {torch.__version__} sees no GPU to measure", cure="run it where there is one")
    new = 32 if minute else 128
    most = _copied(torch)
    ours = _ours(new)
    bytes_read = 2 * (LLAMA.parameters - LLAMA.vocab_size * LLAMA.dim)  # a step reads one row of the embeddings
    share = ours["single"] * bytes_read / most
    theirs = _transformers(torch, new)
    return {
        "gpu": torch.cuda.get_device_name(),
        "dtype": "bfloat16",
        "prompt_tokens": PROMPT,
        "new_tokens": new,
        "copied_gb_per_second": round(most / 1e9),
        "decode_tokens_per_second": round(ours["single"], 1),
        "share_of_bandwidth": round(share, 3),
        "batch": BATCH,
        "batch_tokens_per_second": round(ours["batch"], 1),
        "transformers_batch_tokens_per_second": round(theirs, 1),
        "bars": {
            "batch 1 reads at 60 % of the bandwidth or more": share >= 0.6,
            "batch 64 is at least 5 times transformers": ours["batch"] >= 5 * theirs,
        },
    }


def _copied(torch: Any) -> float:
    """Bytes read and written in a second by the device's own copy."""
    a = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)

    def copy() -> None:
        b.copy_(a)
        torch.cuda.synchronize()

    return 2 * a.numel() / _median(copy, 10)


def _ours(new: int) -> dict[str, float]:
    """Tokens per second of decoding one sequence, and of all 64, logits on the host and the likeliest taken."""
    from ladderlm.nn.backend import TorchBackend

    backend = TorchBackend(LLAMA, RandomWeights(LLAMA), device="cuda", kv_bytes=12 * 2**30)
    found = {}
    for name, rows in (("single", 1), ("batch", BATCH)):
        caches = [backend.cache() for _ in range(rows)]
        for i, cache in enumerate(caches):
            backend.run([Piece(cache, [i + 1] * PROMPT, PROMPT)])
        feeds = [1] * rows

        def step(caches: list[Any] = caches, feeds: list[int] = feeds) -> None:
            logits = backend.run([Piece(c, [f], 0) for c, f in zip(caches, feeds, strict=True)])
            feeds[:] = logits.argmax(-1).tolist()

        found[name] = rows / _median(step, new)
    backend.close()
    return found


def _transformers(torch: Any, new: int) -> float:
    """New tokens per second of `generate` on 64 rows, less what reading the prompts takes."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=LLAMA.vocab_size, hidden_size=LLAMA.dim, num_hidden_layers=LLAMA.layers,
        num_attention_heads=LLAMA.heads, num_key_value_heads=LLAMA.kv_heads, intermediate_size=LLAMA.hidden,
        max_position_embeddings=LLAMA.context_length,
    )  # fmt: skip
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.ones(BATCH, PROMPT, dtype=torch.long, device="cuda")

    def seconds(count: int) -> float:
        def once() -> None:
            model.generate(ids, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)
            torch.cuda.synchronize()

        return _median(once, 2)

    return BATCH * (new - 1) / (seconds(new) - seconds(1))


def _median(run: Callable[[], None], times: int) -> float:
    """Seconds of a run, the first three left out."""
    found = []
    for _ in range(times + 3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found[3:])
