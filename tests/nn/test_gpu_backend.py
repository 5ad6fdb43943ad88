"""What only a GPU shows: recorded steps give what unrecorded ones do, and both what the reference does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_backend import IDS, MOE, SHAPES, KindWeights, Piece, PlainNetwork, TorchBackend, pieces, tiny  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]


def on_gpu(changes: dict[str, Any], kind: str = "F32", **more: Any) -> tuple[TorchBackend, PlainNetwork]:
    arch = tiny(**changes)
    weights = KindWeights(arch, kind)
    return TorchBackend(arch, weights, device="cuda", kv_bytes=2**24, **more), PlainNetwork(arch, weights)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_in_float32_are_those_of_the_reference(name: str) -> None:
    ours, plain = on_gpu(SHAPES[name], dtype=torch.float32)
    lengths = [40, 1, 1, 30, 1]
    np.testing.assert_allclose(pieces(ours, lengths), pieces(plain, lengths), atol=1e-3)
    assert bool(ours._graphs._known) == (not MOE.items() <= SHAPES[name].items()), "single tokens were recorded"


def test_recorded_steps_are_as_unrecorded_ones_in_every_bucket() -> None:
    ours, _ = on_gpu({})
    for rows in (1, 2, 3, 7, 20, 64):
        caches = [ours.cache() for _ in range(rows)]
        for i, cache in enumerate(caches):
            ours.run([Piece(cache, IDS[i : i + 20 + i], 20 + i)])
        twins = [c.fork(len(c)) for c in caches]
        for token in (5, 6):
            recorded = ours.run([Piece(c, [token], 0) for c in caches]).copy()
            loose = ours._mixed([Piece(c, [token], 0) for c in _reserved(twins)]).cpu().numpy()
            for twin in twins:
                twin.ids.append(token)
            np.testing.assert_allclose(recorded, loose, atol=0.05 * np.abs(loose).max())


def _reserved(caches: list[Any]) -> list[Any]:
    for cache in caches:
        cache.reserve(len(cache) + 1)
    return caches


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "Q8_0"])
def test_quantised_weights_agree_in_bfloat16(kind: str) -> None:
    ours, plain = on_gpu({"dim": 256, "head_dim": 64, "hidden": 512}, kind)
    found, expected = pieces(ours, [20, 1]), pieces(plain, [20, 1])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_new_weights_reach_recorded_steps() -> None:
    ours, _ = on_gpu({}, dtype=torch.float32)
    pieces(ours, [20, 1])
    new = KindWeights(ours.arch, seed=1)
    ours.update(new)
    np.testing.assert_allclose(pieces(ours, [20, 1]), pieces(PlainNetwork(ours.arch, new), [20, 1]), atol=1e-3)
