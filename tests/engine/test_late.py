"""A thread that comes late finds the step done: it must not touch what the next step is using."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, tiny

from ladderlm.engine import forward
from ladderlm.engine.backend import Piece
from ladderlm.engine.network import Network
from ladderlm.engine.team import Team


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_late_thread_changes_nothing(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = tiny(placement="parallel", two_norms=True)
    network = Network(arch, KindWeights(arch, kind), threads=2)
    taken: list[Any] = []

    def alone(self: Team, function: Any, *args: Any) -> None:
        sync = forward.counters(arch.layers)
        function(0, 2, *args, sync)
        taken.append((args, sync))

    monkeypatch.setattr(Team, "run", alone)
    cache = network.cache()
    before = network.run([Piece(cache, list(range(tokens)), 0)]).copy()
    network.run([Piece(network.cache(), list(range(1, 70)), 0)])
    logits = network._logits.copy()
    buffers = [b.copy() for b in network._buffers]
    args, sync = taken[0]
    forward.forward(1, 2, *args, sync)
    work = args[3]
    private = [(a.x + 4 * a.own * a.cols, a.codes + a.own * a.cols) for a in (work.normed, work.second, work.heads)]
    for buffer, old in zip(network._buffers, buffers, strict=True):
        start = int(buffer.ctypes.data)
        own = [p - start for pair in private for p in pair if start <= p < start + len(buffer)]
        shared = own[0] if own else len(buffer)
        if any(start == a.fields for a in (work.normed, work.second, work.heads)):
            shared = 4 * forward.kernels.FIELDS * work.normed.own * (work.normed.cols // 32) if tokens > 1 else 0
        assert np.array_equal(buffer[:shared], old[:shared])
    assert np.array_equal(network._logits, logits)
    monkeypatch.undo()
    assert np.array_equal(network.run([Piece(network.cache(), list(range(tokens)), 0)]), before)
    network.close()


def test_a_network_that_is_dropped_takes_its_threads_with_it() -> None:
    """A thread that comes late must not look at memory that is gone."""
    arch, before = tiny(), threading.active_count()
    weights = KindWeights(arch, "Q8_0")
    for _ in range(20):
        network = Network(arch, weights, threads=4)
        cache = network.cache()
        for token in range(5):
            network.run([Piece(cache, [token], 0)])
        del network, cache
    assert threading.active_count() <= before
