"""Prefixes: the longest is found, blocks are shared, the budget holds."""

from __future__ import annotations

from ladderlm.engine.cache import HostBlock, KVCache
from ladderlm.engine.memory import Pool
from ladderlm.engine.prefixes import Prefixes

BYTES = 40
POOL = Pool(BYTES)


def filled(ids: list[int]) -> KVCache:
    cache = KVCache(lambda: HostBlock(POOL), 1000)
    cache.reserve(len(ids))
    cache.ids.extend(ids)
    for i, block in enumerate(cache.blocks):
        block.data[:] = i
    return cache


def take(prefixes: Prefixes, ids: list[int], most: int | None = None) -> KVCache:
    return prefixes.take(ids, len(ids) if most is None else most, KVCache(lambda: HostBlock(POOL), 1000))


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    cache = filled(list(range(70)))
    other = cache.fork(40)
    assert other.ids == list(range(40))
    assert other.blocks[0] is cache.blocks[0]
    assert other.blocks[1] is not cache.blocks[1]
    assert other.addresses[1] == other.blocks[1].address
    assert (other.blocks[1].data == cache.blocks[1].data).all()


def test_the_longest_common_prefix_is_taken() -> None:
    prefixes = Prefixes(10**6)
    prefixes.keep(filled([1, 2, 3, 4]))
    prefixes.keep(filled([1, 2, 9]))
    assert take(prefixes, [1, 2, 3, 7]).ids == [1, 2, 3]
    assert take(prefixes, [1, 2, 9, 9]).ids == [1, 2, 9]
    assert take(prefixes, [1, 2, 9, 9], most=2).ids == [1, 2]
    assert take(prefixes, [5]).ids == []


def test_a_longer_one_replaces_its_own_prefix_and_not_the_other_way() -> None:
    prefixes = Prefixes(10**6)
    for ids in ([1, 2], [1, 2, 3], [1, 2]):
        prefixes.keep(filled(ids))
    assert len(prefixes) == 1
    assert take(prefixes, [1, 2, 3, 4]).ids == [1, 2, 3]


def test_the_least_recently_used_goes_first() -> None:
    prefixes = Prefixes(2 * BYTES)  # two blocks
    prefixes.keep(filled([1]))
    prefixes.keep(filled([2]))
    take(prefixes, [1, 5])
    prefixes.keep(filled([3]))
    assert prefixes.bytes <= 2 * BYTES
    assert take(prefixes, [1]).ids == [1]
    assert take(prefixes, [2]).ids == []


def test_what_an_owner_writes_later_does_not_show() -> None:
    prefixes, cache = Prefixes(10**6), filled([1, 2])
    prefixes.keep(cache)
    cache.ids.append(3)
    assert take(prefixes, [1, 2, 3]).ids == [1, 2]


def test_rejected_tokens_are_forgotten_and_their_place_is_used_again() -> None:
    cache = filled(list(range(70)))
    cache.truncate(33)
    assert cache.ids == list(range(33))
    blocks = len(cache.blocks)
    cache.reserve(70)
    assert len(cache.blocks) == blocks
