"""Byte-pair encoding of whole texts: words cut, looked up among those met before, else merged. Compiled by numba.

A word met before costs one look into a table of places of four 64-bit numbers:
the word itself (up to 8 bytes) or its hash; its bytes and its ids, how many; where its bytes lie in a pool; its ids,
when there are no more than two, else where they lie in a pool of ids.
"""

from __future__ import annotations

import numpy as np

from ladderlm.text.jit import kernel
from ladderlm.text.merging import find, pair_of
from ladderlm.text.scan import place, same, word_end, word_key

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_NO_RANK = np.int64(1) << 40
SHORT = 64  # symbols: for more, a heap beats looking at all of them
_SHIFT = 32


@kernel
def rank_of(a, b, pair_keys, pair_values):  # type: ignore[no-untyped-def]
    """The place in the order of merges of a pair, _NO_RANK if it is none."""
    key = pair_of(a, b)
    at = find(pair_keys, key)
    return pair_values[at, 0] if pair_keys[at] == key else _NO_RANK


@kernel
def merge_short(ids, ranks, n, pair_keys, pair_values):  # type: ignore[no-untyped-def]
    """Merges the first `n` ids in place: the lowest rank first, of equals the leftmost. Returns how many remain."""
    for i in range(n - 1):
        ranks[i] = rank_of(ids[i], ids[i + 1], pair_keys, pair_values)
    while n > 1:
        best, at = _NO_RANK, -1
        for i in range(n - 1):
            if ranks[i] < best:
                best, at = ranks[i], i
        if at < 0:
            break
        ids[at] = pair_values[find(pair_keys, pair_of(ids[at], ids[at + 1])), 1]
        n -= 1
        for i in range(at + 1, n):
            ids[i] = ids[i + 1]
            ranks[i] = ranks[i + 1]
        if at > 0:
            ranks[at - 1] = rank_of(ids[at - 1], ids[at], pair_keys, pair_values)
        if at < n - 1:
            ranks[at] = rank_of(ids[at], ids[at + 1], pair_keys, pair_values)
    return n


@kernel
def sift_in(heap, size, value):  # type: ignore[no-untyped-def]
    i = size
    while i > 0 and heap[(i - 1) // 2] > value:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = value


@kernel
def sift_out(heap, size):  # type: ignore[no-untyped-def]
    """Takes the smallest of `size` values off the heap."""
    first, value, i = heap[0], heap[size - 1], 0
    while 2 * i + 1 < size - 1:
        down = 2 * i + 1
        if down + 1 < size - 1 and heap[down + 1] < heap[down]:
            down += 1
        if value <= heap[down]:
            break
        heap[i] = heap[down]
        i = down
    heap[i] = value
    return first


@kernel
def merge_long(ids, n, pair_keys, pair_values):  # type: ignore[no-untyped-def]
    """As merge_short, in n log n steps: candidates in a heap by (rank, place), symbols in a linked list."""
    after, before = np.arange(1, n + 1), np.arange(-1, n - 1)
    heap, size = np.empty(3 * n, np.int64), 0
    for i in range(n - 1):
        rank = rank_of(ids[i], ids[i + 1], pair_keys, pair_values)
        if rank < _NO_RANK:
            sift_in(heap, size, rank << _SHIFT | i)
            size += 1
    while size:
        top = sift_out(heap, size)
        size -= 1
        at, rank = top & 0xFFFFFFFF, top >> _SHIFT
        right = after[at]
        if ids[at] < 0 or right >= n or rank_of(ids[at], ids[right], pair_keys, pair_values) != rank:
            continue
        ids[at] = pair_values[find(pair_keys, pair_of(ids[at], ids[right])), 1]
        ids[right] = -1
        after[at] = after[right]
        if after[at] < n:
            before[after[at]] = at
            rank = rank_of(ids[at], ids[after[at]], pair_keys, pair_values)
            if rank < _NO_RANK:
                sift_in(heap, size, rank << _SHIFT | at)
                size += 1
        left = before[at]
        if left >= 0:
            rank = rank_of(ids[left], ids[at], pair_keys, pair_values)
            if rank < _NO_RANK:
                sift_in(heap, size, rank << _SHIFT | left)
                size += 1
    kept, i = 0, 0
    while i < n:
        ids[kept] = ids[i]
        kept += 1
        i = after[i]
    return kept


@kernel
def encode_word(data, i, j, byte_ids, pair_keys, pair_values, scratch, ranks):  # type: ignore[no-untyped-def]
    """The ids of one word: (an array that begins with them, how many)."""
    n = j - i
    if n > SHORT:
        ids = np.empty(n, np.int64)
        for t in range(n):
            ids[t] = byte_ids[data[i + t]]
        return ids, merge_long(ids, n, pair_keys, pair_values)
    for t in range(n):
        scratch[t] = byte_ids[data[i + t]]
    return scratch, merge_short(scratch, ranks, n, pair_keys, pair_values)


@kernel
def encode_texts(  # type: ignore[no-untyped-def]
    data, ends, table, style, digits, byte_ids, pair_keys, pair_values, words, pool, id_pool, state, out, out_ends
):  # fmt: skip
    """Writes the ids of the texts that end at `ends` to `out`, and where each text's ids end to `out_ends`.

    `words`, `pool`, `id_pool` and `state` (words, bytes, ids in use) are what is known from before; when they are full
    all is forgotten. Returns the number of ids.
    """
    scratch, ranks = np.empty(SHORT, np.int64), np.empty(SHORT, np.int64)
    mask, i, n = len(words) - 1, np.int64(0), np.int64(0)
    for text in range(len(ends)):
        end = ends[text]
        while i < end:
            j = word_end(data, i, end, table, style, digits)
            length = j - i
            key = word_key(data, i, j)
            at = place(key, length, mask)
            found = False
            while words[at, 1]:
                alike = words[at, 0] == key and np.int64(words[at, 1] & _LOW) == length
                if alike and (length <= 8 or same(pool, np.int64(words[at, 2]), data, i, length)):
                    found = True
                    break
                at = (at + 1) & mask
            if found:
                count = np.int64(words[at, 1] >> _32)
                if count <= 2:
                    both = words[at, 3]
                    out[n] = both & _LOW
                    if count == 2:
                        out[n + 1] = both >> _32
                else:
                    first = np.int64(words[at, 3])
                    for t in range(count):
                        out[n + t] = id_pool[first + t]
                n += count
                i = j
                continue
            ids, count = encode_word(data, i, j, byte_ids, pair_keys, pair_values, scratch, ranks)
            for t in range(count):
                out[n + t] = ids[t]
            n += count
            if length <= SHORT:
                if 2 * state[0] >= len(words) or state[1] + SHORT > len(pool) or state[2] + SHORT > len(id_pool):
                    words[:] = 0
                    state[:] = 0
                    at = place(key, length, mask)
                words[at, 0], words[at, 1] = key, np.uint64(length) | np.uint64(count) << _32
                if length > 8:
                    words[at, 2] = state[1]
                    pool[state[1] : state[1] + length] = data[i:j]
                    state[1] += length
                if count <= 2:
                    words[at, 3] = np.uint64(ids[0]) | np.uint64(ids[count - 1]) << _32
                else:
                    words[at, 3] = state[2]
                    for t in range(count):
                        id_pool[state[2] + t] = ids[t]
                    state[2] += count
                state[0] += 1
            i = j
        out_ends[text] = n
    return n


@kernel
def fill_pairs(pairs, pair_keys, pair_values):  # type: ignore[no-untyped-def]
    """The table of merges: row r of `pairs` is (left, right, both) of rank r; of equal pairs the last counts."""
    for r in range(len(pairs)):
        key = pair_of(pairs[r, 0], pairs[r, 1])
        at = find(pair_keys, key)
        pair_keys[at], pair_values[at, 0], pair_values[at, 1] = key, r, pairs[r, 2]
