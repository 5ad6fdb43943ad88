"""Speed of a backend alone, as `llama-bench` measures: random ids, no sampling, nothing else in the step.

Contents do not matter to speed, but a prompt that was seen before could be answered from a cache: every call draws
its own. Figures are tokens a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.cache import BLOCK, KVCache
from ladderlm.models.arch import Architecture
from ladderlm.models.quants import row_bytes
from ladderlm.models.weights import Weights

Ids = list[int]


def draw(random: np.random.Generator, arch: Architecture, count: int) -> Ids:
    """`count` random ids."""
    return [int(i) for i in random.integers(0, arch.vocab_size, count)]


def prefill(backend: Backend, ids: Sequence[int]) -> float:
    """Reading `ids`, the last one's logits included."""
    start = time.perf_counter()
    _read(backend, ids, want=True)
    return len(ids) / (time.perf_counter() - start)


def decode(backend: Backend, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
    """One token of every sequence a step, all together, once the prompts are read; of all sequences in sum.

    Sequences with the same prompt share its keys and values.
    """
    read = {tuple(prompt): _read(backend, prompt) for prompt in {tuple(p): p for p in prompts}.values()}
    caches = [read[tuple(prompt)].fork(len(prompt)) for prompt in prompts]
    steps = list(zip(*answers, strict=True))
    start = time.perf_counter()
    for step in steps:
        backend.run([Piece(cache, [token], 0) for cache, token in zip(caches, step, strict=True)])
    return len(caches) * len(steps) / (time.perf_counter() - start)


def _read(backend: Backend, ids: Sequence[int], want: bool = False) -> KVCache:
    cache = backend.cache()
    for at in range(0, len(ids), backend.max_rows):
        some = ids[at : at + backend.max_rows]
        last = want and at + len(some) == len(ids)
        backend.run([Piece(cache, some, len(some) - last)])
    return cache


# --- What a step must read and compute at least -------------------------------------------------------------------


def weight_bytes(arch: Architecture, weights: Weights) -> int:
    """Bytes of the matrices that every step reads, in the form that the model's file has."""
    total = 0
    for name, shape in _matrices(arch).items():
        found = weights.blocks(name)
        total += shape[0] * row_bytes(found.kind if found else "F32", shape[1])
    return total


def cache_bytes(backend: Backend) -> int:
    """Bytes of the keys and values of a position, as this backend keeps them."""
    return backend.block_bytes // BLOCK


def prefill_operations(arch: Architecture, length: int) -> float:
    """Multiplications and additions of reading `length` tokens: the layers for all, the output matrix for the last;
    each position attends to those up to itself."""
    head = arch.vocab_size * arch.dim
    layers = sum(rows * cols for rows, cols in _matrices(arch).values()) - head
    attended = length * (length + 1) / 2 * arch.layers * arch.heads * arch.head_dim
    return 2.0 * layers * length + 2.0 * head + 4.0 * attended


def _matrices(arch: Architecture) -> dict[str, tuple[int, int]]:
    """Name and shape of the matrices that are multiplied: all but tables that are looked up."""
    tables = {"model.embed_positions.weight"} | (set() if arch.tied else {"model.embed_tokens.weight"})
    return {n: (s[0], s[1]) for n, s in arch.tensor_shapes().items() if len(s) == 2 and n not in tables}
