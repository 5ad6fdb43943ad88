"""Many short requests on a random 15 M Llama-style model: nothing leaks, nobody starves, and it rests at the end.

Clients ask for answers of a few tokens after prompts that share one of a few beginnings; one request in ten is
cancelled on the way, by its `cancel` or by closing its stream, and some are urgent or may wait. A request's wait is
the time to its first token, or to its end if it has none. A minute's soak is of a model so small that 20,000 requests
fit, and its bar on memory is wider, as a heap takes longer than that to settle; what Python holds is counted exactly.
"""

from __future__ import annotations

import random
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Blocks
from ladderlm.types import Sampling

CLIENTS = 16
KV_BLOCKS = 256  # blocks of keys and values: 64 MB of the 15 M model's
SAMPLE = 100  # requests between two looks at the memory
PATIENCE = 30.0  # seconds that the 99th of a hundred may wait


def _random_blocks(rng: np.random.Generator, rows: int, cols: int) -> Blocks:
    """Q8_0: a half-precision scale and 32 bytes for each 32 weights; here about 0.02 each."""
    data = rng.integers(-127, 128, (rows * cols // 32, 34), dtype=np.int8).view(np.uint8)
    data[:, :2] = np.full((len(data), 1), 0.02 / 73, np.float16).view(np.uint8)
    return Blocks("Q8_0", rows, cols, data.reshape(rows, -1))


class RandomWeights:
    """Random weights of a small scale, as Q8_0."""

    def __init__(self, arch: Architecture) -> None:
        rng = np.random.default_rng(0)
        self._shapes = arch.tensor_shapes()
        self._matrices = {name: _random_blocks(rng, *shape) for name, shape in self._shapes.items() if len(shape) == 2}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def float32(self, name: str) -> Any:
        return self._matrices[name].float32() if name in self._matrices else np.ones(self._shapes[name], np.float32)

    def blocks(self, name: str) -> Blocks | None:
        return self._matrices.get(name)


def fifteen_million() -> Architecture:
    return Architecture(
        vocab_size=16000, dim=288, layers=6, heads=6, kv_heads=6, head_dim=48, hidden=768, context_length=512, tied=True
    )


def tiny() -> Architecture:
    return Architecture(
        vocab_size=16000, dim=32, layers=1, heads=1, kv_heads=1, head_dim=32, hidden=32, context_length=512, tied=True
    )


def resident() -> int:
    """Bytes of memory this process holds."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Soak:
    """The clients' work and what they saw."""

    def __init__(self, engine: Engine, count: int, seconds: float) -> None:
        self.engine, self.count = engine, count
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._started = 0
        self._waits = np.zeros(count)  # made at once: lists that grow would be the largest leak here
        self._seen = np.zeros((count // SAMPLE + 1, 3))  # after so many requests, bytes, and Python's blocks of memory
        self.cancelled = 0
        self.failed: list[str] = []

    @property
    def waits(self) -> Any:
        return self._waits[self._waits > 0]

    @property
    def seen(self) -> Any:
        return self._seen[self._seen[:, 0] > 0]

    def run(self) -> None:
        clients = [threading.Thread(target=self._client, args=(i,)) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        for i in self._numbers():
            if i % SAMPLE == 0:
                self._seen[i // SAMPLE] = i, resident(), sys.getallocatedblocks()
            try:
                self._waits[i - 1] = self._ask(rng)
            except Exception as error:
                self.failed.append(repr(error))

    def _numbers(self) -> Iterator[int]:
        while True:
            with self._lock:
                if self._started >= self.count or time.monotonic() > self._until:
                    return
                self._started += 1
                number = self._started
            yield number

    def _ask(self, rng: random.Random) -> float:
        start = rng.randrange(8)
        ids = [100 + start + i for i in range(40)] + [rng.randrange(300, 15000) for _ in range(rng.randrange(1, 12))]
        sampling = Sampling(temperature=0.8, seed=rng.randrange(2**32), max_tokens=rng.randrange(1, 10))
        cancel = threading.Event()
        fate = rng.random()
        began, first = time.monotonic(), None
        stream = self.engine.generate(ids, sampling, cancel=cancel, priority=rng.choice((0, 0, 0, 1, -1)))
        for delta in stream:
            if first is None:
                first = time.monotonic() - began
                if fate < 0.05:
                    cancel.set()
                elif fate < 0.1:
                    stream.close()  # type: ignore[attr-defined]
                    break
            ended = delta.finish_reason
            self.cancelled += ended == "cancelled"
        return first if first is not None else time.monotonic() - began


def slope(x: Any, y: Any) -> tuple[float, float]:
    """What y grows by per 10,000 requests, by regression on their number x, and its upper 95 % bound."""
    x, y = x - x.mean(), y - y.mean()
    b = float((x @ y) / (x @ x))
    error = float(np.sqrt(((y - b * x) ** 2).sum() / (len(x) - 2) / (x @ x)))
    return b * 10_000, (b + 1.645 * error) * 10_000


def idle_cpu(seconds: float = 2.0) -> float:
    """The share of a core that this process takes while nobody asks for anything."""
    before = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - before) / seconds


def measure(minute: bool) -> dict[str, Any]:
    count, settle, seconds = (20_000, 5_000, 45.0) if minute else (300_000, 50_000, 6 * 3600.0)
    arch, most = (tiny(), 4e6) if minute else (fifteen_million(), 1e6)
    backend = on_cpu(arch, RandomWeights(arch), threads=2)
    with Engine(backend, kv_bytes=KV_BLOCKS * backend.block_bytes) as engine:
        soak = Soak(engine, count, seconds)
        began = time.perf_counter()
        soak.run()
        taken = time.perf_counter() - began
        idle = idle_cpu()
        blocks, kept = engine.kv_bytes_used
    done = len(soak.waits)
    numbers, memory, objects = soak.seen[soak.seen[:, 0] >= min(settle, done // 2)].T
    (each, bound), (pieces, pieces_bound) = slope(numbers, memory), slope(numbers, objects)
    p50, p99 = np.quantile(soak.waits, [0.5, 0.99])
    return {
        "requests": done, "cancelled": soak.cancelled, "failed": soak.failed[:5],
        "requests_per_second": round(done / taken, 1), "wait_seconds": {"p50": round(p50, 4), "p99": round(p99, 4)},
        "memory_bytes_per_10000_requests": round(each), "bound_95": round(bound),
        "python_blocks_per_10000_requests": round(pieces), "python_blocks_bound_95": round(pieces_bound),
        "idle_share_of_a_core": round(idle, 4),
        "bars": {
            "every request answered": not soak.failed and (minute or done == count),
            "the 99th of a hundred waits at most 30 s": bool(p99 < PATIENCE),
            "nothing is held but what is kept for reuse": blocks == kept,
            "idle at the end: under 2 % of a core": idle < 0.02,
            f"memory: under {most / 1e6:.0f} MB per 10,000 requests (95 % bound)": bound < most,
            "memory: under one object of Python's per 10 requests (95 % bound)": pieces_bound < 1000,
        },
    }  # fmt: skip
