"""The torch backend on the CPU: every family's logits, in any mix of pieces, are those of the reference."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).parents[1] / "engine"))

from engine_models import KindWeights, byte_tokenizer, tiny  # noqa: E402
from test_hot import lora, virtual  # noqa: E402

from ladderlm.engine.backend import Piece  # noqa: E402
from ladderlm.engine.engine import Engine  # noqa: E402
from ladderlm.engine.plain import PlainNetwork  # noqa: E402
from ladderlm.errors import Overloaded, UsageError  # noqa: E402
from ladderlm.models.quants import KINDS  # noqa: E402
from ladderlm.nn.backend import TorchBackend, find_device  # noqa: E402
from ladderlm.nn.graphs import bucket  # noqa: E402
from ladderlm.types import Sampling  # noqa: E402

IDS = [(31 * i + 7) % 250 for i in range(150)]
BIASED: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm_bias": True, "norm": "layer"}
LONG = {"rope_type": "longrope", "short_factor": [1.0 + i / 2 for i in range(8)],
        "long_factor": [4.0 + i / 2 for i in range(8)], "original_max_position_embeddings": 50}  # fmt: skip
VIRTUAL = ("prompt", "prefix")
MOE: dict[str, Any] = {"experts": 5, "experts_used": 2, "expert_hidden": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tied": True, "kv_heads": 4},
    "gemma": {"windows": (40, 0), "local_theta": 100.0, "placement": "sandwich", "norm_offset": True,
              "qk_norm": "head", "attention_cap": 3.0, "logit_cap": 4.0, "attention_scale": 0.3, "embed_scale": 5.0,
              "activation": "gelu_tanh"},
    "windows": {"windows": (33, 64), "qkv_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "olmo": {"placement": "inner", "qk_norm": "all", "unrotated": (1,)},
    "opt": {"placement": "post", "positions": "learned", "position_offset": 2, "gated": False, "activation": "gelu",
            **BIASED},
    "parallel": {"placement": "parallel", "two_norms": True, "rotary_dim": 4, "gated": False, "activation": "relu",
                 "norm": "layer", "norm_bias": True},
    "alibi": {"placement": "parallel", "positions": "alibi", "qk_norm": "heads", **BIASED},
    "experts": {**MOE, "shared_hidden": 48, "dense_layers": (0,)},
    "longrope": {"rope_scaling": LONG},
}  # fmt: skip


def backend(changes: dict[str, Any], kind: str = "F32", **more: Any) -> tuple[TorchBackend, PlainNetwork]:
    arch = tiny(**changes)
    weights = KindWeights(arch, kind)
    more = {"kv_bytes": 2**22, **more}
    return TorchBackend(arch, weights, device="cpu", **more), PlainNetwork(arch, weights)


def pieces(network: Any, lengths: list[int], text: list[int] = IDS) -> np.ndarray:
    """Logits of a text read in pieces of `lengths`."""
    cache, found = network.cache(), []
    for length in lengths:
        found.append(network.run([Piece(cache, text[len(cache) : len(cache) + length], 0)]).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_reference_in_any_pieces(name: str) -> None:
    ours, plain = backend(SHAPES[name])
    for lengths in ([150], [7, 40, 1, 1, 30, 1, 70], [1] * 40):
        expected = pieces(plain, lengths)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(pieces(ours, lengths), expected, atol=1e-4)
    ours.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stays_quantised_and_agrees(kind: str) -> None:
    wide = {"dim": 256, "head_dim": 64, "hidden": 512} if KINDS[kind].weights == 256 else {}
    ours, plain = backend(wide, kind)
    expected = pieces(plain, [40, 1, 1])
    np.testing.assert_allclose(pieces(ours, [40, 1, 1]), expected, atol=1e-4 * np.abs(expected).max())
    head = ours._head
    np.testing.assert_allclose(head.dense().numpy(), KindWeights(ours.arch, kind).float32("lm_head.weight"), atol=1e-6)
    if kind not in ("F32", "F16", "BF16"):
        assert not hasattr(head, "weight")
        assert head.form.bits == (4 if kind in ("Q4_0", "Q4_1", "Q4_K") else 8)


@pytest.mark.parametrize("name", ["llama", "gemma", "alibi", "experts", "longrope"])
def test_mixed_steps_with_forks_and_truncation(name: str) -> None:
    ours, plain = backend(SHAPES[name])
    results = []
    for network in (ours, plain):
        found = []
        start, other, single = network.cache(), network.cache(), network.cache()
        found.append(network.run([Piece(start, IDS[:40], 39), Piece(single, IDS[5:6], 0)]).copy())
        forks = [start.fork(n) for n in (40, 33, 32, 5)]
        step = [Piece(forks[0], IDS[40:41], 0), Piece(other, IDS[60:90], 28), Piece(single, IDS[6:7], 0)]
        step += [Piece(f, IDS[len(f) : len(f) + 9], 7) for f in forks[1:]]
        found.append(network.run(step).copy())
        forks[1].truncate(35)  # as after rejected drafts
        found.append(network.run([Piece(forks[1], IDS[100:104], 0), Piece(start, IDS[:1], 0)]).copy())
        found.append(network.run([Piece(c, [9], 0) for c in (*forks, other, single)]).copy())
        found.append(network.run([Piece(start, IDS[:3], 3)]).copy())
        results.append(found)
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_a_request_is_alone_in_its_pages() -> None:
    ours, _ = backend({})
    expected = pieces(ours, [30, 1, 1])
    noise = ours.cache()
    ours.run([Piece(noise, IDS[::-1], 150)])
    ours._pool.pages[:, :, [b.address for b in noise.blocks]] = torch.inf
    del noise
    gc.collect()
    np.testing.assert_allclose(pieces(ours, [30, 1, 1]), expected, atol=1e-5)


def test_pages_return_and_a_full_pool_is_refused() -> None:
    ours, _ = backend({}, kv_bytes=6 * 2 * 2 * 32 * 2 * 16 * 4)  # 6 pages, one of them nobody's
    cache = ours.cache()
    ours.run([Piece(cache, IDS[:70], 70)])
    fork = cache.fork(70)
    assert len(ours._pool.free) == 1
    with pytest.raises(Overloaded):
        ours.run([Piece(ours.cache(), IDS[:70], 0)])
    gc.collect()
    assert len(ours._pool.free) == 1, "what was taken for the refused is back"
    expected = ours.run([Piece(cache, IDS[70:71], 0)]).copy()
    assert np.allclose(ours.run([Piece(fork, IDS[70:71], 0)]), expected, atol=1e-5)
    del cache, fork
    gc.collect()
    assert sorted(ours._pool.free) == [1, 2, 3, 4, 5]


def test_new_weights_take_the_place_of_the_old() -> None:
    arch = tiny(qk_norm="head", qkv_bias=True)
    old, new = KindWeights(arch, "Q8_0"), KindWeights(arch, "Q8_0", seed=1)
    ours = TorchBackend(arch, old, device="cpu", kv_bytes=2**22)
    before = pieces(ours, [20])
    with pytest.raises(UsageError):
        ours.update(KindWeights(arch, "Q4_0"))
    assert np.array_equal(pieces(ours, [20]), before)
    ours.update(new)
    np.testing.assert_allclose(pieces(ours, [20]), pieces(PlainNetwork(arch, new), [20]), atol=1e-4)


def test_the_engine_answers_on_it_as_on_the_cpu() -> None:
    ours, plain = backend({})
    sampling = Sampling(temperature=0, max_tokens=20, n=2)
    answers = []
    for network, more in ((ours, {"kv_bytes": ours.kv_bytes}), (plain, {})):
        with Engine(network, byte_tokenizer(), **more) as engine:
            streams = [engine.generate(IDS[i : i + 50], sampling) for i in range(4)]
            found = [[(d.index, id) for d in s for id in d.ids] for s in streams]  # how many come at once is chance
            answers.append([[[id for n, id in told if n == index] for index in (0, 1)] for told in found])
    assert answers[0] == answers[1]


def test_a_layer_is_one_graph_for_the_compiler() -> None:
    for name in ("llama", "gemma", "alibi"):
        ours, plain = backend(SHAPES[name])
        expected = pieces(plain, [20, 1])
        ours._graphs.step = torch.compile(ours._graphs.step, backend="eager", fullgraph=True, dynamic=False)
        np.testing.assert_allclose(pieces(ours, [20, 1]), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma", "experts"])
def test_adapters_are_as_in_the_reference(name: str) -> None:
    ours, plain = backend(SHAPES[name])
    arch, results = ours.arch, []
    for network in (ours, plain):
        loaded = [network.adapt(a) for a in (lora(arch), lora(arch, seed=1), *(virtual(arch, k) for k in VIRTUAL))]
        starts = [a.start.fork(len(a.start)) for a in loaded]
        plainly = network.cache()
        step = [Piece(c, IDS[i : i + 9], 7, a) for i, (c, a) in enumerate(zip(starts, loaded, strict=True))]
        found = [network.run([step[0], Piece(plainly, IDS[:12], 0), *step[1:]]).copy()]
        last = [Piece(c, [i], 0, a) for i, (c, a) in enumerate(zip(starts, loaded, strict=True))]
        found.append(network.run([*last, Piece(plainly, [3], 0)]).copy())
        results.append(found)
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    bare = ours.cache()
    ours.run([Piece(bare, IDS[:9], 9)])
    assert np.abs(ours.run([Piece(bare, [0], 0)]) - results[0][1][0]).max() > 0.01, "the adapter changes something"


def test_shapes_of_a_step_are_few() -> None:
    assert [bucket(n, 1) for n in (1, 3, 64)] == [(1, 8), (4, 8), (64, 8)]
    assert bucket(5, 9) == (8, 16)
    assert bucket(1, 1024) == (1, 1024)


def test_devices_that_are_not_there_are_refused() -> None:
    assert find_device("cpu").type == "cpu"
    for name in ("tpu", "cuda:99", "cuda:x"):
        with pytest.raises(UsageError):
            find_device(name)
