"""The scheduler: shared prompts are read once, memory holds, the urgent go first, errors are a request's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from engine_models import EOS, KindWeights, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.cache import BLOCK, Block, HostBlock, KVCache
from ladderlm.engine.engine import Engine
from ladderlm.errors import ContextOverflow, FormatError, Overloaded
from ladderlm.types import Completion, Sampling

FREE = ((EOS, -1000.0),)


def made(**options: Any) -> Engine:
    arch = tiny()
    return Engine(on_cpu(arch, KindWeights(arch), threads=1), **options)


def write(engine: Engine, ids: Sequence[int], priority: int = 0, **sampling: Any) -> Completion:
    return Completion.fold(engine.generate(ids, Sampling(logit_bias=FREE, seed=1, **sampling), priority=priority))


def together(engine: Engine, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Completion]:
    """All at once: the engine sees none before it has them all."""
    found: dict[int, Completion] = {}
    with engine._scheduler._stepping:  # the first may be chosen, not stepped
        threads = [
            threading.Thread(target=lambda i=i, p=p: found.update({i: write(engine, p, **sampling)}))  # type: ignore[misc]
            for i, p in enumerate(prompts)
        ]
        for thread in threads:
            thread.start()
        while len(engine._scheduler._waiting) + len(engine._scheduler._active) < len(prompts):
            pass
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(prompts))]


def test_a_beginning_shared_by_requests_that_come_together_is_read_once() -> None:
    prompts = [[*range(100), 200 + i, 7] for i in range(6)]
    with made() as engine:
        found = together(engine, prompts, max_tokens=5)
        assert sum(c.usage.cached_tokens >= 96 for c in found) == 5
    with made() as engine:
        assert [write(engine, p, max_tokens=5).choices for p in prompts] == [c.choices for c in found]


def test_memory_holds_and_answers_are_the_same() -> None:
    prompts = [[i + 1] * 20 for i in range(8)]
    with made() as engine:
        expected = [write(engine, p, max_tokens=60).choices for p in prompts]
        block = engine._backend.block_bytes
    with made(kv_bytes=7 * block) as engine:
        most, run = 0, engine._backend.run

        def watched(pieces: Any) -> Any:
            nonlocal most
            rows = run(pieces)
            most = max(most, engine.kv_bytes_used[0])
            return rows

        engine._backend.run = watched  # type: ignore[method-assign]
        assert [c.choices for c in together(engine, prompts, max_tokens=60)] == expected
        assert most <= 7 * block
        with pytest.raises(ContextOverflow, match="kv_bytes"):
            made(kv_bytes=block).next_logits([1] * 40)


def test_weights_that_are_no_numbers_end_their_request_alone() -> None:
    with made() as engine:
        run = engine._backend.run

        def broken(pieces: Any) -> Any:
            rows = run(pieces).copy()
            rows[:] = np.nan
            return rows

        engine._backend.run = broken  # type: ignore[method-assign]
        for temperature in (0, 1):
            with pytest.raises(FormatError):
                write(engine, [1, 2], temperature=temperature, max_tokens=4)
        engine._backend.run = run  # type: ignore[method-assign]
        assert len(write(engine, [1, 2], max_tokens=4).choices[0].ids) == 4


@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_is_full_sooner_than_promised_delays_and_fails_nobody(kept: bool) -> None:
    prompts = [[i + 1] * 20 for i in range(6)]
    with made() as engine:
        expected = [write(engine, p, max_tokens=60).choices for p in prompts]
    with made() as engine:
        alive, fresh, full = engine._scheduler._alive, engine._backend.cache, 0

        def cache() -> KVCache:
            def block() -> Block:
                nonlocal full
                if len(alive) >= 7:
                    full += 1
                    raise Overloaded("full")
                return HostBlock(engine._backend._pool)

            return KVCache(block, fresh().addresses.size * BLOCK)

        engine._backend.cache = cache  # type: ignore[method-assign]
        if kept:
            for i in range(3):
                write(engine, [100 + i] * 60, max_tokens=2)
        assert [c.choices for c in together(engine, prompts, max_tokens=60)] == expected
        assert full


def test_one_request_that_memory_does_not_hold_is_told_so() -> None:
    with made() as engine:
        made_of = engine._backend.cache

        def cache() -> KVCache:
            found = made_of()
            found._fresh = full
            return found

        def full() -> Block:
            raise Overloaded("full")

        engine._backend.cache = cache  # type: ignore[method-assign]
        with pytest.raises(Overloaded):
            write(engine, [1, 2], max_tokens=4)
        engine._backend.cache = made_of  # type: ignore[method-assign]
        assert len(write(engine, [1, 2], max_tokens=4).choices[0].ids) == 4
