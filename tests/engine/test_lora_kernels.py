"""LoRA in the compiled kernels: what merged weights give, to the bit whatever else is in a step."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, Rounded, tiny
from test_hot import lora

from ladderlm.engine import forward
from ladderlm.engine.backend import Piece
from ladderlm.engine.engine import Engine
from ladderlm.engine.hot import LoadedAdapter
from ladderlm.engine.network import Network
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.engine.team import Team
from ladderlm.models.adapter import Adapter, MergedWeights
from ladderlm.models.arch import Architecture
from ladderlm.types import FloatArray, Sampling

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 257, 75)]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "odd": {"dim": 50, "hidden": 40, "heads": 3, "kv_heads": 1},
    "sandwich": {"placement": "sandwich", "qk_norm": "head", "activation": "gelu_tanh", "windows": (40, 0)},
    "post": {"placement": "post", "positions": "learned", "gated": False, "activation": "gelu", "norm": "layer",
             "norm_bias": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "two": {"placement": "parallel", "two_norms": True, "gated": False, "activation": "relu"},
}  # fmt: skip


def whole(network: Network, ids: list[int], adapter: LoadedAdapter | None = None, size: int = 75) -> FloatArray:
    cache = network.cache()
    parts = [Piece(cache, ids[i : i + size], 0, adapter) for i in range(0, len(ids), size)]
    return np.concatenate([network.run([part]).copy() for part in parts])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 6, 40])
def test_it_is_as_merged(changes: dict[str, Any], rank: int) -> None:
    arch = tiny(**changes)
    weights, adapter = KindWeights(arch), lora(arch, rank=rank)
    adapter = dataclasses.replace(adapter, scale=2.0 / rank)
    network = Network(arch, weights, threads=2)
    expected = ReferenceDecoder(arch, MergedWeights(weights, adapter, arch)).logits(IDS)
    found = whole(network, IDS, network.adapt(adapter))
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, size))
    assert np.abs(found - whole(network, IDS)).max() > 1e-2 * size, "the adapter changes something"
    network.close()


@pytest.mark.parametrize("left", ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
def test_it_may_leave_matrices_out(left: str) -> None:
    arch = tiny()
    weights, adapter = KindWeights(arch), lora(arch)
    some = {name: pair for name, pair in adapter.pairs.items() if left not in name and "layers.0" in name}
    adapter = dataclasses.replace(adapter, pairs=some)
    network = Network(arch, weights, threads=2)
    expected = ReferenceDecoder(arch, MergedWeights(weights, adapter, arch)).logits(IDS)
    np.testing.assert_allclose(whole(network, IDS, network.adapt(adapter)), expected, atol=1e-4)
    network.close()


class RoundedLora(Rounded):
    """Activations are rounded for the matrices of the base alone."""

    def __init__(self, arch: Architecture, weights: KindWeights, adapter: Adapter) -> None:
        super().__init__(arch, weights)
        self._beside = {n: (a, np.float32(adapter.scale) * b) for n, (a, b) in adapter.pairs.items()}

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        a, b = self._beside[name + ".weight"]
        found: FloatArray = super()._linear(name, x) + (x @ a.T) @ b.T
        return found


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_beside_quantised_weights(kind: str) -> None:
    arch = tiny()
    weights, adapter = KindWeights(arch, kind), lora(arch)
    network = Network(arch, weights, threads=2)
    expected = RoundedLora(arch, weights, adapter).logits(IDS)
    found = whole(network, IDS, network.adapt(adapter))
    size = np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 2e-3 * size  # A and B in float16, and roundings that fall otherwise
    np.testing.assert_allclose(found, expected, atol=3e-2 * size)
    assert np.abs(whole(network, IDS) - expected).max() > 0.1 * size
    network.close()


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_to_the_bit_in_any_batch(kind: str) -> None:
    arch = tiny()
    network = Network(arch, KindWeights(arch, kind), threads=2)
    bare = whole(network, IDS)
    loaded = [network.adapt(lora(arch, 1)), network.adapt(lora(arch, 2, rank=9))]
    alone = [whole(network, IDS, a) for a in loaded]
    assert not np.allclose(alone[0], alone[1], atol=1e-2)
    for size in (1, 2, 7, 33):
        for adapter, expected in zip(loaded, alone, strict=True):
            assert np.array_equal(whole(network, IDS, adapter, size), expected), f"chunks of {size}"
    start = network.cache()
    network.run([Piece(start, IDS[:40], 40, loaded[0])])
    every = [(start.fork(33), 33, loaded[0]), (network.cache(), 0, None), (network.cache(), 0, loaded[1])]
    rows = network.run([Piece(c, IDS[n:60], 0, a) for c, n, a in every])
    expected = np.concatenate([alone[0][33:60], bare[:60], alone[1][:60]])
    assert np.array_equal(rows, expected), "beside others"
    rows = network.run([Piece(c, IDS[60:61], 0, a) for c, _, a in every])
    assert np.array_equal(rows, np.stack([alone[0][60], bare[60], alone[1][60]])), "single tokens beside others"
    single = Network(arch, KindWeights(arch, kind), threads=1)
    assert np.array_equal(whole(single, IDS, single.adapt(lora(arch, 1))), alone[0])
    assert np.array_equal(whole(network, IDS), bare), "nothing stays behind"
    network.close()
    single.close()


def test_numbers_that_float16_does_not_hold_stay_float32() -> None:
    arch = tiny()
    weights, adapter = KindWeights(arch, "Q4_1"), lora(arch)
    network = Network(arch, weights, threads=2)
    expected = whole(network, IDS, network.adapt(adapter))
    for factor in (2.0**20, 2.0**-30):  # of A, and its inverse of B
        pairs = {name: (a * np.float32(factor), b / np.float32(factor)) for name, (a, b) in adapter.pairs.items()}
        found = whole(network, IDS, network.adapt(dataclasses.replace(adapter, pairs=pairs)))
        assert np.median(np.abs(found - expected)) < 2e-3 * np.abs(expected).max()
    network.close()


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_late_thread_changes_nothing(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = tiny()
    network = Network(arch, KindWeights(arch, "Q4_1"), threads=2)
    loaded = network.adapt(lora(arch))
    taken: list[Any] = []

    def alone(self: Team, function: Any, *args: Any) -> None:
        sync = forward.counters(arch.layers)
        function(0, 2, *args, sync)
        taken.append((args, sync))

    monkeypatch.setattr(Team, "run", alone)
    network.run([Piece(network.cache(), list(range(tokens)), 0, loaded)])
    network.run([Piece(network.cache(), list(range(1, 70)), 0, loaded)])
    before, logits = network._low.copy(), network._logits.copy()
    args, sync = taken[0]
    forward.forward(1, 2, *args, sync)
    work = args[3]
    shared = work.low_step * (work.normed.own + 1)  # and the first thread's own
    assert np.array_equal(network._low[:shared], before[:shared])
    assert np.array_equal(network._logits, logits)
    network.close()


def test_engine_adds_and_removes_while_others_run() -> None:
    arch = tiny()
    greedy = Sampling(temperature=0, max_tokens=40)

    def written(engine: Engine, name: str | None) -> list[int]:
        return [i for d in engine.generate(IDS[:9] * 3, greedy, adapter=name) for i in d.ids]

    with Engine(Network(arch, KindWeights(arch, "Q4_1"), threads=2)) as engine:
        engine.add_adapter("one", lora(arch, 1))
        engine.add_adapter("two", lora(arch, 2))
        expected = {name: written(engine, name) for name in ("one", "two", None)}
        assert len({tuple(ids) for ids in expected.values()}) == 3
        found: dict[str | None, list[list[int]]] = {name: [] for name in expected}

        def again(name: str | None) -> None:
            for _ in range(6):
                found[name].append(written(engine, name))

        threads = [threading.Thread(target=again, args=(name,)) for name in expected]
        for thread in threads:
            thread.start()
        for number in range(6):
            engine.add_adapter("other", lora(arch, 10 + number, rank=4 + 8 * number))
            written(engine, "other")
            engine.remove_adapter("other")
        for thread in threads:
            thread.join()
        assert found == {name: [ids] * 6 for name, ids in expected.items()}


def test_guesses_are_checked_with_the_adapter() -> None:
    arch = tiny()
    sampling = Sampling(temperature=0, max_tokens=60)
    written = []
    for speculate in (True, False):
        with Engine(Network(arch, KindWeights(arch), threads=2), speculate=speculate) as engine:
            engine.add_adapter("one", lora(arch, 1))
            written.append([i for d in engine.generate(IDS[:8] * 6, sampling, adapter="one") for i in d.ids])
    assert written[0] == written[1]


def test_new_weights_leave_it_valid() -> None:
    arch, new = tiny(), KindWeights(tiny(), seed=1)
    with Engine(Network(arch, KindWeights(arch), threads=2)) as engine:
        engine.add_adapter("one", lora(arch, 1))
        engine.update(new)
        expected = ReferenceDecoder(arch, MergedWeights(new, lora(arch, 1), arch)).logits(IDS)
        np.testing.assert_allclose(engine.logits(IDS, adapter="one"), expected, atol=1e-4)
