"""Keys and values in int8: half the memory, nearly the same logits, still the same bits for any batch or chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import KindWeights, tiny
from test_hot import virtual

from ladderlm.engine import on_cpu
from ladderlm.engine.backend import Backend, Piece
from ladderlm.engine.network import Network
from ladderlm.errors import UsageError
from ladderlm.types import FloatArray, KVType

IDS = [5, 9, 200, 31, 7, 77, 12, 3, 40, 41, 250] * 9
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"head_dim": 32}, "wide": {"head_dim": 64, "heads": 2, "kv_heads": 1},
    "window": {"head_dim": 32, "windows": (0, 24)}, "alibi": {"head_dim": 32, "positions": "alibi", "kv_heads": 4},
    "capped": {"head_dim": 32, "attention_cap": 2.0},
}  # fmt: skip


def network(kv_dtype: KVType, *, exact: bool = False, **changes: Any) -> Network:
    arch = tiny(**changes)
    return Network(arch, KindWeights(arch, "Q8_0"), threads=2, kv_dtype=kv_dtype, exact=exact)


def logits(made: Backend, step: int = len(IDS)) -> FloatArray:
    cache = made.cache()
    return np.concatenate([made.run([Piece(cache, IDS[i : i + step], 0)]).copy() for i in range(0, len(IDS), step)])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_are_nearly_those_of_float32(changes: dict[str, Any]) -> None:
    # With activations in float: those in 8 bits flip at the slightest change, which hides what is measured here.
    exact, ours = (logits(network(kind, exact=True, **changes)) for kind in ("float32", "int8"))
    off = np.abs(ours - exact).max() / np.abs(exact).max()
    assert 0 < off < 0.03


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_same_bits_in_any_chunk_and_batch(changes: dict[str, Any]) -> None:
    made = network("int8", **changes)
    whole = logits(made)
    for step in (1, 3, 8, 33):
        assert np.array_equal(logits(made, step), whole)
    caches = [made.cache() for _ in range(9)]
    rows = made.run([Piece(c, IDS[: 5 * i + 4], 5 * i + 3) for i, c in enumerate(caches)])
    assert np.array_equal(rows, whole[[5 * i + 3 for i in range(9)]])


def test_it_takes_half_of_float16() -> None:
    half, eighth = network("float16", head_dim=32), network("int8", head_dim=32)
    assert eighth.block_bytes == half.block_bytes * 34 // 64  # a scale of 2 bytes for 32 numbers


def test_a_prefix_is_remembered() -> None:
    adapter = virtual(tiny(head_dim=32), "prefix")
    found = []
    for kv_dtype in ("float32", "int8"):
        made = network(kv_dtype, exact=True, head_dim=32)  # type: ignore[arg-type]
        loaded = made.adapt(adapter)
        cache = loaded.start.fork(len(loaded.start))
        found.append(made.run([Piece(cache, IDS[:40], 0, loaded)]).copy())
    assert np.abs(found[1] - found[0]).max() < 0.05 * np.abs(found[0]).max()
    assert np.abs(found[1] - logits(made)[:40]).max() > 0.1 * np.abs(found[0]).max(), "the prefix tells"


def test_what_cannot_be_kept_so_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 32"):
        network("int8")
    arch = tiny(experts=3, experts_used=2, expert_hidden=32, dense_layers=(0,))
    with pytest.raises(UsageError, match="float32"):
        on_cpu(arch, KindWeights(arch), kv_dtype="int8")
