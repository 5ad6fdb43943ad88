"""New weights in the place of the old: from the next step on, and nothing read before is used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, tiny

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.errors import UsageError
from ladderlm.types import Sampling

BIASED: dict[str, Any] = {"qkv_bias": True, "norm": "layer", "norm_bias": True, "positions": "learned"}
IDS = [5, 9, 200, 31, 7, 77, 12, 3] * 6


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": True, "norm": "layer", "norm_bias": True, "positions": "learned"}],
    ids=["plain", "biased"],
)
def test_updated_is_as_made_new(kind: str, changes: dict[str, Any]) -> None:
    arch = tiny(**changes)
    old, new = KindWeights(arch, kind, seed=0), KindWeights(arch, kind, seed=1)
    with Engine(on_cpu(arch, old, threads=2)) as engine, Engine(on_cpu(arch, new, threads=2)) as fresh:
        before = engine.logits(IDS)
        engine.update(new)
        assert np.array_equal(engine.logits(IDS), fresh.logits(IDS))
        engine.update(old)
        assert np.array_equal(engine.next_logits(IDS), before[-1]), "what the other weights read is not reused"


def test_the_plain_network_takes_new_weights() -> None:
    arch = tiny(experts=3, experts_used=2, expert_hidden=32)
    assert not arch.compiled
    old, new = (KindWeights(arch, seed=seed) for seed in (0, 1))
    with Engine(on_cpu(arch, old)) as engine, Engine(on_cpu(arch, new)) as fresh:
        engine.logits(IDS)
        engine.update(new)
        assert np.allclose(engine.logits(IDS), fresh.logits(IDS), atol=1e-5)


def test_requests_under_way_go_on_with_the_new_weights() -> None:
    arch = tiny()
    old, new = KindWeights(arch, seed=0), KindWeights(arch, seed=1)
    with Engine(on_cpu(arch, old, threads=2), speculate=False) as engine, Engine(on_cpu(arch, old, threads=2)) as same:
        sampling = Sampling(temperature=0, max_tokens=140)  # more than a reader may leave unread
        expected = [i for d in same.generate(IDS[:8], sampling) for i in d.ids]
        stream = engine.generate(IDS[:8], sampling)
        written = list(next(stream).ids)
        engine.update(new)
        written += [i for d in stream for i in d.ids]
        assert written[0] == expected[0]
        assert written != expected
        with Engine(on_cpu(arch, new, threads=2)) as fresh:
            assert np.array_equal(engine.logits(IDS[:8]), fresh.logits(IDS[:8])), "its keys and values were not kept"


@pytest.mark.parametrize("other", [KindWeights(tiny(), "F16"), KindWeights(tiny(dim=96)), KindWeights(tiny(layers=1))])
def test_weights_that_do_not_fit_change_nothing(other: KindWeights) -> None:
    arch = tiny()
    with Engine(on_cpu(arch, KindWeights(arch), threads=2)) as engine:
        before = engine.logits(IDS)
        with pytest.raises(UsageError):
            engine.update(other)
        assert np.array_equal(engine.logits(IDS), before)
