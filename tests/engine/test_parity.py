"""The compiled network against the plain numpy decoder, and against itself in other batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import FLOATS, KindWeights, Rounded, tiny

from ladderlm.engine import on_cpu, pack
from ladderlm.engine.engine import Engine
from ladderlm.engine.network import Network, Piece
from ladderlm.engine.reference import ReferenceDecoder
from ladderlm.models import open_model
from ladderlm.models.quants import KINDS

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 257, 75)]


def whole(network: Network, ids: list[int]) -> np.ndarray:
    return network.run([Piece(network.cache(), ids, 0)]).copy()


def chunked(network: Network, ids: list[int], size: int) -> np.ndarray:
    cache = network.cache()
    return np.concatenate([network.run([Piece(cache, ids[i : i + size], 0)]).copy() for i in range(0, len(ids), size)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_with_the_reference(kind: str) -> None:
    wide = {"dim": 256, "head_dim": 64, "hidden": 512} if KINDS[kind].weights == 256 else {}
    arch = tiny(**wide)
    weights = KindWeights(arch, kind)
    network = Network(arch, weights, threads=2)
    expected = Rounded(arch, weights).logits(IDS)
    found = whole(network, IDS)
    size = np.abs(expected).max()
    if kind in FLOATS:
        np.testing.assert_allclose(found, expected, atol=3e-5 * size)
    else:  # a rounding that falls to the other side, here and there
        rows = np.median(np.abs(found - expected), axis=1)
        assert np.sort(rows)[1] < 3e-6 * size
        np.testing.assert_allclose(found, expected, atol=2e-2 * size)
    assert np.array_equal(found, chunked(network, IDS, 1))
    network.close()
    exact = Network(arch, weights, threads=2, exact=True)
    expected = ReferenceDecoder(arch, weights).logits(IDS)
    np.testing.assert_allclose(whole(exact, IDS), expected, atol=3e-5 * np.abs(expected).max())
    exact.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 50}, {"hidden": 40}, {"head_dim": 6}, {"head_dim": 24}, {"head_dim": 80}, {"heads": 3, "kv_heads": 1},
        {"kv_heads": 4}, {"heads": 12, "kv_heads": 1}, {"vocab_size": 270}, {"tied": True},
    ],
    ids=str,
)  # fmt: skip
def test_odd_shapes_agree_with_the_reference(changes: dict[str, Any]) -> None:
    arch = tiny(**changes)
    weights = KindWeights(arch)
    network = Network(arch, weights, threads=2)
    expected = ReferenceDecoder(arch, weights).logits(IDS)
    found = whole(network, IDS)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.array_equal(found, chunked(network, IDS, 1))
    network.close()


LONG = [(31 * i + 7) % 250 for i in range(150)]  # over several cache blocks and windows
BIASED: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm_bias": True, "norm": "layer"}


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (40, 0), "local_theta": 100.0, "placement": "sandwich", "norm_offset": True, "qk_norm": "head",
         "attention_cap": 3.0, "logit_cap": 4.0, "attention_scale": 0.3, "embed_scale": 5.0,
         "activation": "gelu_tanh"},
        {"windows": (33, 64), "qkv_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"placement": "inner", "qk_norm": "all", "unrotated": (1,)},
        {"placement": "post", "positions": "learned", "position_offset": 2, "gated": False, "activation": "gelu",
         **BIASED},
        {"placement": "parallel", "two_norms": True, "rotary_dim": 4, "gated": False, "activation": "relu",
         "norm": "layer", "norm_bias": True},
        {"placement": "parallel", "positions": "alibi", "qk_norm": "heads", **BIASED},
        {"dim": 50, "hidden": 40, "positions": "learned", **BIASED},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)  # fmt: skip
def test_compositions_agree_with_the_reference_in_any_chunks(changes: dict[str, Any]) -> None:
    arch = tiny(**changes)
    assert arch.compiled
    weights = KindWeights(arch)
    network = Network(arch, weights, threads=2)
    expected = ReferenceDecoder(arch, weights).logits(LONG)
    found = whole(network, LONG)
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())
    assert np.ptp(expected) > 0.1
    for size in (1, 7, 33):
        assert np.array_equal(found, chunked(network, LONG, size)), f"chunks of {size}"
    network.close()


@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q6_K"])
def test_logits_are_the_same_to_the_bit_in_any_batch(kind: str) -> None:
    arch = tiny(dim=256, hidden=256, head_dim=64)
    network = Network(arch, KindWeights(arch, kind), threads=2)
    expected = whole(network, IDS)
    for size in (1, 2, 3, 7, 16, 33):
        assert np.array_equal(expected, chunked(network, IDS, size)), f"chunks of {size}"
    start, other = network.cache(), network.cache()
    network.run([Piece(start, IDS[:40], 40)])
    forks = [start.fork(n) for n in (40, 33, 32, 5)]
    rows = network.run([Piece(other, IDS[::-1], 70), *(Piece(f, IDS[len(f) : len(f) + 9], 0) for f in forks)])
    for i, n in enumerate((40, 33, 32, 5)):
        assert np.array_equal(rows[5 + 9 * i : 14 + 9 * i], expected[n : n + 9]), f"beside others, after {n} cached"
    single = Network(arch, KindWeights(arch, kind), threads=1)
    assert np.array_equal(whole(single, IDS), expected), "the number of threads changes nothing"
    network.close()
    single.close()


def test_a_large_model_is_packed_once_and_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = tiny()
    weights = KindWeights(arch, "Q4_0")
    fresh = pack.pack(arch, weights)
    monkeypatch.setattr(pack, "CACHE_ABOVE", 0)
    first = pack.pack(arch, weights, key="k" * 64)
    monkeypatch.setattr(pack, "_fill", lambda *args: pytest.fail("packed again"))
    second = pack.pack(arch, weights, key="k" * 64)
    assert np.array_equal(first.buffer, second.buffer)
    network = Network(arch, weights, threads=2, key="k" * 64)
    monkeypatch.undo()
    plain = Network(arch, weights, threads=2)
    assert np.array_equal(whole(network, IDS), whole(plain, IDS))
    assert fresh.buffer.shape == first.buffer.shape
    network.close()
    plain.close()


def test_the_default_model_agrees_with_the_reference(default_model: str) -> None:
    files = open_model(default_model)
    ids = files.tokenizer.encode("The quick brown fox jumps over the lazy dog. Listen to your heart")
    exact = ReferenceDecoder(files.arch, files.weights).logits(ids)
    rounded = Rounded(files.arch, files.weights).logits(ids)
    with Engine(on_cpu(files.arch, files.weights, threads=2)) as engine:
        found = engine.logits(ids)
    size = np.linalg.norm(exact)
    assert np.linalg.norm(found - exact) < 0.06 * size
    assert np.linalg.norm(found - rounded) < 0.06 * size  # roundings that fall to the other side
