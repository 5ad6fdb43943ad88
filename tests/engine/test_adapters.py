"""Adapters at the engine's door: named, several at once, added and removed while others run."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from engine_models import KindWeights, tiny
from test_hot import IDS, lora, virtual

from ladderlm.engine import on_cpu
from ladderlm.engine.engine import Engine
from ladderlm.engine.plain import PlainNetwork
from ladderlm.errors import ContextOverflow, FormatError, NotFound
from ladderlm.models.adapter import Adapter, MergedWeights
from ladderlm.models.arch import Architecture
from ladderlm.types import Sampling

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture
def arch() -> Architecture:
    return tiny()


@pytest.fixture
def adapters(arch: Architecture) -> dict[str, Adapter]:
    return {
        "one": lora(arch, 1), "two": lora(arch, 2, rank=8), "soft": virtual(arch, "prompt"),
        "prefix": virtual(arch, "prefix"),
    }  # fmt: skip


@pytest.fixture
def engine(arch: Architecture, adapters: dict[str, Adapter]) -> Iterator[Engine]:
    with Engine(PlainNetwork(arch, KindWeights(arch))) as engine:
        for name, adapter in adapters.items():
            engine.add_adapter(name, adapter)
        yield engine


def written(engine: Engine, adapter: str | None, ids: list[int] = IDS) -> list[int]:
    return [i for d in engine.generate(ids, GREEDY, adapter=adapter) for i in d.ids]


def test_lora_at_the_door_is_as_merged(engine: Engine, arch: Architecture, adapters: dict[str, Adapter]) -> None:
    with Engine(PlainNetwork(arch, MergedWeights(KindWeights(arch), adapters["one"], arch))) as merged:
        assert np.allclose(engine.logits(IDS, adapter="one"), merged.logits(IDS), atol=1e-4)
        assert np.allclose(engine.next_logits(IDS, adapter="one"), merged.next_logits(IDS), atol=1e-4)
        pairs = [[3, 4], [5], []]
        for found, expected in zip(engine.score(IDS, pairs, adapter="one"), merged.score(IDS, pairs), strict=True):
            assert np.allclose(found, expected, atol=1e-4)
        assert written(engine, "one") == written(merged, None)


def test_several_at_once_are_as_alone(engine: Engine, adapters: dict[str, Adapter]) -> None:
    names = [None, *adapters]
    alone = {name: written(engine, name) for name in names}
    assert len({tuple(ids) for ids in alone.values()}) > 3, "adapters change what is written"
    streams = {name: engine.generate(IDS, GREEDY, adapter=name) for name in names}
    found: dict[str | None, list[int]] = {name: [] for name in names}
    threads = [
        threading.Thread(target=lambda n=name, s=stream: found[n].extend(i for d in s for i in d.ids))
        for name, stream in streams.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_compiled_rows_do_not_depend_on_others(arch: Architecture, kind: str) -> None:
    with Engine(on_cpu(arch, KindWeights(arch), threads=2)) as engine:
        engine.add_adapter("a", virtual(arch, kind, 1))
        engine.add_adapter("b", virtual(arch, kind, 2, tokens=33))
        alone = {name: engine.logits(IDS, adapter=name) for name in ("a", "b", None)}
        assert not np.allclose(alone["a"], alone[None], atol=1e-2)
        running = engine.generate(IDS[:9], Sampling(temperature=0, max_tokens=60), adapter="b")
        next(running)
        for name, expected in alone.items():
            assert np.array_equal(engine.logits(IDS, adapter=name), expected)
            assert np.array_equal(engine.next_logits(IDS, adapter=name), expected[-1])
        list(running)


def test_prefixes_are_shared_within_an_adapter_only(engine: Engine) -> None:
    def cached(adapter: str | None) -> int:
        usage = next(d.usage for d in engine.generate(IDS, GREEDY, adapter=adapter) if d.usage)
        assert usage.prompt_tokens == len(IDS), "virtual tokens do not count"
        return usage.cached_tokens

    for name in (None, "one", "soft", "prefix"):
        assert cached(name) == 0
    for name in (None, "one", "soft", "prefix"):
        assert cached(name) == len(IDS) - 1


def test_virtual_tokens_take_room_in_the_context(engine: Engine) -> None:
    long = [7] * (160 - 5)
    with pytest.raises(ContextOverflow, match="virtual"):
        engine.next_logits([*long, 7], adapter="soft")
    assert engine.next_logits(long, adapter="soft").shape == (257,)
    usage = next(d.usage for d in engine.generate(long[:150], Sampling(temperature=0), adapter="soft") if d.usage)
    assert usage.completion_tokens <= 5


def test_replaced_and_removed_while_in_use(engine: Engine, arch: Architecture, adapters: dict[str, Adapter]) -> None:
    expected = {name: written(engine, name) for name in ("one", "two")}
    stream = engine.generate(IDS, GREEDY, adapter="one")
    begun = list(next(stream).ids)
    engine.add_adapter("one", adapters["two"])
    assert written(engine, "one") == expected["two"], "the new one from the next request on"
    engine.remove_adapter("one")
    assert begun + [i for d in stream for i in d.ids] == expected["one"], "who began with the old one goes on with it"
    with pytest.raises(NotFound, match="one"):
        engine.logits(IDS, adapter="one")
    with pytest.raises(NotFound):
        engine.remove_adapter("one")
    with pytest.raises(FormatError, match="fit"):
        engine.add_adapter("wide", lora(tiny(dim=96)))


def test_a_tuned_prompt_is_read_again_with_new_weights(engine: Engine, arch: Architecture) -> None:
    new = KindWeights(arch, seed=1)
    engine.logits(IDS, adapter="soft")
    engine.update(new)
    with Engine(PlainNetwork(arch, new)) as fresh:
        for name, adapter in (("soft", virtual(arch, "prompt")), ("one", lora(arch, 1))):
            fresh.add_adapter(name, adapter)
            assert np.allclose(engine.logits(IDS, adapter=name), fresh.logits(IDS, adapter=name), atol=1e-5)
