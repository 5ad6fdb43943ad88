"""Decode of the default model beside programs that only burn the processor, on as many cores as it has threads.

A fair system gives every thread that wants to run the same time, so with T threads on T cores beside B busy loops an
engine's share is T / (T + B) of what it does alone. One whose threads wait for each other by spinning falls far below,
and spends more processor time on the same tokens. Alone, beside one loop and beside two, in turns; each figure is put
in proportion to the same round's alone. llama.cpp stands in the same situation where its tools are (LLAMA_CPP_BIN); its
processor time includes loading, the same in all three; it writes fewer tokens, since it may take minutes over more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.engine import THREADS, missing
from ladderlm import engine, events
from ladderlm.engine import measure as measures
from ladderlm.engine.backend import Backend, Piece
from ladderlm.evals.peers import LLAMA_FOLDER, LlamaCpp
from ladderlm.evals.work import Work
from ladderlm.models import ModelFiles, open_model
from ladderlm.models.catalogue import DEFAULT_MODEL

PROMPT = 64  # tokens
BUSY = (0, 1, 2)  # loops
TOLERANCE = 0.9  # of the share: loops also take caches, and half of a core where two share one
# Ends by itself when its parent is gone.
LOOP = "import os\np = os.getppid()\nwhile os.getppid() == p:\n    for _ in range(100_000): pass\n"


class Found(NamedTuple):
    """Tokens a second of wall time, and processor seconds for the whole of it."""

    speed: float
    cpu: float


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many processes of pure arithmetic."""
    with contextlib.ExitStack() as stack:
        for _ in range(loops):
            process = subprocess.Popen([sys.executable, "-S", "-E", "-c", LOOP])
            stack.callback(process.wait)
            stack.callback(process.kill)
        time.sleep(0.3 if loops else 0)  # until they are under way
        yield


@contextlib.contextmanager
def cores(count: int) -> Iterator[int]:
    """Keeps this process and its children to `count` cores where the system can; how many it has."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield min(count, len(before))
    finally:
        os.sched_setaffinity(0, before)


def ours(backend: Backend, tokens: int) -> Found:
    """Decode of one sequence."""
    random = np.random.default_rng()
    cache = backend.cache()
    backend.run([Piece(cache, measures.draw(random, backend.arch, PROMPT), PROMPT)])
    ids = measures.draw(random, backend.arch, tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    for token in ids:
        backend.run([Piece(cache, [token], 0)])
    return Found(tokens / (time.perf_counter() - wall), time.process_time() - cpu)


def theirs(peer: LlamaCpp, tokens: int) -> Found:
    """The same, as llama-bench tells it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    speed = peer.measure(Work("decode", "decode", "decode", 1, PROMPT, tokens))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Found(speed or 0.0, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def rounds(systems: Mapping[str, Callable[[], Found]], count: int) -> dict[tuple[str, int], list[Found]]:
    """What each did beside so many loops, round by round."""
    found: dict[tuple[str, int], list[Found]] = {(name, loops): [] for name in systems for loops in BUSY}
    steps = [(loops, name) for _ in range(count) for loops in BUSY for name in systems]
    for loops, name in events.track(steps, "busy", unit="measurements"):
        with busy(loops):
            found[name, loops].append(systems[name]())
    return found


def line(alone: Sequence[Found], beside: Sequence[Found], share: float) -> dict[str, Any]:
    """Medians; `kept` is the part of its own speed, `per_cpu_second` of its own tokens a processor second."""
    kept = [b.speed / a.speed for a, b in zip(alone, beside, strict=True)]
    work = [a.cpu / b.cpu for a, b in zip(alone, beside, strict=True)]
    return {
        "tokens_per_second": round(statistics.median(b.speed for b in beside), 1),
        "cpu_seconds": round(statistics.median(b.cpu for b in beside), 2),
        "kept": round(statistics.median(kept), 3), "kept_range": [round(min(kept), 3), round(max(kept), 3)],
        "per_cpu_second": round(statistics.median(work), 3), "share": round(share, 3),
    }  # fmt: skip


def measure(minute: bool) -> dict[str, Any]:
    files, threads = open_model(DEFAULT_MODEL), int(THREADS)
    with cores(threads) as there:
        return _measure(files, threads, there, minute)


def _measure(files: ModelFiles, threads: int, there: int, minute: bool) -> dict[str, Any]:
    why = missing(os.environ.get(LLAMA_FOLDER))
    backend = engine.on_cpu(files.arch, files.weights, threads=threads, key=files.hash)
    try:
        room = files.arch.context_length - PROMPT
        tokens = min(room, max(16, int(ours(backend, 32).speed * (0.5 if minute else 3.0))))  # for so many seconds
        systems: dict[str, Callable[[], Found]] = {"ladderlm": lambda: ours(backend, tokens)}
        if not why:
            peer = LlamaCpp(files, threads)
            systems["llama.cpp"] = lambda: theirs(peer, 16 if minute else 64)
        found = rounds(systems, 1 if minute else 5)
    finally:
        backend.close()
    shares = {loops: min(1.0, there / (threads + loops)) / min(1.0, there / threads) for loops in BUSY}
    table = {
        name: {f"beside {loops}": line(found[name, 0], found[name, loops], shares[loops]) for loops in BUSY}
        for name in systems
    }
    result: dict[str, Any] = {"threads": threads, "cores": there, "tokens": tokens, **table}
    if why:
        result["llama_cpp_left_out"] = why
    if minute:
        return result
    mine = table["ladderlm"]
    words = f"keeps {TOLERANCE:.0%} of its share"
    bars = {
        f"beside {loops}: {words}": mine[f"beside {loops}"]["kept"] >= TOLERANCE * shares[loops] for loops in BUSY[1:]
    }
    return {**result, "bars": bars}
