"""Learning byte-pair merges with counts kept up to date (Sennrich et al., 2016). Compiled by numba.

The pair seen most is merged next; of equals the one with the smaller ids, as in the `tokenizers` library, so that
both learn the same vocabulary. Only words that hold the merged pair are looked at again.
"""

from __future__ import annotations

import numpy as np

from ladderlm.text.jit import kernel
from ladderlm.text.scan import place, same, word_key

_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel
def pair_of(a, b):  # type: ignore[no-untyped-def]
    return np.uint64(a) << _32 | np.uint64(b)


@kernel
def find(keys, key):  # type: ignore[no-untyped-def]
    """The place of a pair, or the free one where it belongs."""
    mask = len(keys) - 1
    at = place(key, 0, mask)
    while keys[at] != key and keys[at] != _NONE:
        at = (at + 1) & mask
    return at


@kernel
def grown(keys, counts, heads, stamps):  # type: ignore[no-untyped-def]
    """The table of pairs at twice its size."""
    size = 2 * len(keys)
    new_keys, new_counts = np.full(size, _NONE, np.uint64), np.zeros(size, np.int64)
    new_heads, new_stamps = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    for old in range(len(keys)):
        if keys[old] != _NONE:
            at = find(new_keys, keys[old])
            new_keys[at], new_counts[at], new_heads[at], new_stamps[at] = (
                keys[old], counts[old], heads[old], stamps[old],
            )  # fmt: skip
    return new_keys, new_counts, new_heads, new_stamps


@kernel
def doubled(array):  # type: ignore[no-untyped-def]
    bigger = np.empty(2 * len(array), array.dtype)
    bigger[: len(array)] = array
    return bigger


@kernel
def push(heap_counts, heap_keys, size, count, key):  # type: ignore[no-untyped-def]
    """Adds to a binary heap: the largest count first, of equals the smallest key. There must be room."""
    i = size
    while i > 0:
        up = (i - 1) // 2
        if heap_counts[up] > count or (heap_counts[up] == count and heap_keys[up] <= key):
            break
        heap_counts[i], heap_keys[i] = heap_counts[up], heap_keys[up]
        i = up
    heap_counts[i], heap_keys[i] = count, key


@kernel
def pop(heap_counts, heap_keys, size):  # type: ignore[no-untyped-def]
    """Takes the first off a heap of `size` entries; returns (count, key)."""
    first = (heap_counts[0], heap_keys[0])
    last = size - 1
    count, key = heap_counts[last], heap_keys[last]
    i = 0
    while 2 * i + 1 < last:
        down = 2 * i + 1
        right = down + 1
        if right < last and (
            heap_counts[right] > heap_counts[down]
            or (heap_counts[right] == heap_counts[down] and heap_keys[right] < heap_keys[down])
        ):
            down = right
        if count > heap_counts[down] or (count == heap_counts[down] and key <= heap_keys[down]):
            break
        heap_counts[i], heap_keys[i] = heap_counts[down], heap_keys[down]
        i = down
    heap_counts[i], heap_keys[i] = count, key
    return first


@kernel
def enter_tokens(pool, starts, slots, count):  # type: ignore[no-untyped-def]
    """Puts the first `count` tokens into an empty table."""
    for t in range(count):
        i, j = starts[t], starts[t + 1]
        at = place(word_key(pool, i, j), j - i, len(slots) - 1)
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = t


@kernel
def token_named(pool, starts, slots, names, a, b):  # type: ignore[no-untyped-def]
    """The id of the token spelled as `a` and `b` together, which is `names`, the next free one, if there is none.

    Token t is pool[starts[t]:starts[t + 1]]; `slots` finds tokens by their bytes.
    """
    i = starts[names]
    length = starts[a + 1] - starts[a] + starts[b + 1] - starts[b]
    middle = i + starts[a + 1] - starts[a]
    pool[i:middle] = pool[starts[a] : starts[a + 1]]
    pool[middle : i + length] = pool[starts[b] : starts[b + 1]]
    at = place(word_key(pool, i, i + length), length, len(slots) - 1)
    while slots[at] >= 0:
        t = slots[at]
        if starts[t + 1] - starts[t] == length and same(pool, starts[t], pool, i, length):
            return t
        at = (at + 1) & (len(slots) - 1)
    slots[at] = names
    starts[names + 1] = i + length
    return names


@kernel
def count_pairs(symbols, starts, weights):  # type: ignore[no-untyped-def]
    """The table of all pairs, their counts, and for each a linked list of the words that hold it.

    Word w is symbols[starts[w]:starts[w + 1]], seen `weights[w]` times. Node n of a list says word node_word[n] and
    goes on at node_next[n], -1 at its end.
    """
    keys, counts = np.full(1 << 16, _NONE, np.uint64), np.zeros(1 << 16, np.int64)
    heads, stamps = np.full(1 << 16, -1, np.int32), np.zeros(1 << 16, np.int32)
    node_word, node_next = np.empty(len(symbols) + 1, np.int32), np.empty(len(symbols) + 1, np.int32)
    used = nodes = 0
    for w in range(len(starts) - 1):
        for i in range(starts[w], starts[w + 1] - 1):
            if 2 * used >= len(keys):
                keys, counts, heads, stamps = grown(keys, counts, heads, stamps)
            key = pair_of(symbols[i], symbols[i + 1])
            at = find(keys, key)
            if keys[at] == _NONE:
                keys[at] = key
                used += 1
            counts[at] += weights[w]
            if heads[at] < 0 or node_word[heads[at]] != w:
                node_word[nodes], node_next[nodes] = w, heads[at]
                heads[at] = nodes
                nodes += 1
    return keys, counts, heads, stamps, node_word, node_next, used, nodes


@kernel
def merge_in_word(symbols, start, length, a, b, new, weight, keys, counts, fresh):  # type: ignore[no-untyped-def]
    """Merges (a, b) in one word, left to right; returns its new length and how many pairs with `new` it made.

    Counts of pairs that go fall here; pairs that come are left in `fresh` for the caller to count.
    """
    read = write = start
    end, made, beside = start + length, 0, False  # beside: the symbol before was merged just now
    while read < end:
        merged = read + 1 < end and symbols[read] == a and symbols[read + 1] == b
        if merged:
            if write > start:
                left = symbols[write - 1]
                if beside:
                    made -= 1  # (new, a), which is no more; (b, a) was taken off with it
                else:
                    counts[find(keys, pair_of(left, a))] -= weight
                fresh[made] = pair_of(left, new)
                made += 1
            if read + 2 < end:
                right = symbols[read + 2]
                counts[find(keys, pair_of(b, right))] -= weight
                fresh[made] = pair_of(new, right)
                made += 1
            symbols[write] = new
            read += 2
        else:
            symbols[write] = symbols[read]
            read += 1
        beside = merged
        write += 1
    return write - start, made


@kernel
def first_heap(keys, counts):  # type: ignore[no-untyped-def]
    """A heap of all pairs."""
    heap_counts, heap_keys, size = np.empty(len(keys), np.int64), np.empty(len(keys), np.uint64), 0
    for at in range(len(keys)):
        if keys[at] != _NONE:
            push(heap_counts, heap_keys, size, counts[at], keys[at])
            size += 1
    return heap_counts, heap_keys, size


@kernel
def learn(symbols, starts, weights, token_pool, token_starts, token_slots, tokens, vocab_size, merges):  # type: ignore[no-untyped-def]
    """Merges until there are `vocab_size` tokens, `merges` is full, or nothing is left; returns (tokens, merges made).

    Row m of `merges` becomes (left, right, id of both together). Different pairs can spell the same token.
    """
    keys, counts, heads, stamps, node_word, node_next, used, nodes = count_pairs(symbols, starts, weights)
    heap_counts, heap_keys, size = first_heap(keys, counts)
    lengths, longest = np.empty(len(starts) - 1, np.int64), 0
    for w in range(len(lengths)):
        lengths[w] = starts[w + 1] - starts[w]
        longest = max(longest, lengths[w])
    fresh, touched, done = np.empty(2 * longest + 2, np.uint64), np.empty(1024, np.uint64), 0
    while size and tokens < vocab_size and done < len(merges):
        count, key = pop(heap_counts, heap_keys, size)
        size -= 1
        at = find(keys, key)
        if counts[at] != count:  # it has changed since it was put there
            if counts[at] > 0:
                push(heap_counts, heap_keys, size, counts[at], key)
                size += 1
            continue
        if count < 1:
            continue
        a, b = np.int64(key >> _32), np.int64(key & _LOW)
        while token_starts[tokens] + token_starts[a + 1] - token_starts[a] + longest > len(token_pool):
            token_pool = doubled(token_pool)
        new = token_named(token_pool, token_starts, token_slots, tokens, a, b)
        tokens = max(tokens, new + 1)
        merges[done, 0], merges[done, 1], merges[done, 2] = a, b, new
        done += 1
        node, seen = heads[at], 0
        while node >= 0:
            w, node = node_word[node], node_next[node]
            while 2 * (used + lengths[w]) >= len(keys):
                keys, counts, heads, stamps = grown(keys, counts, heads, stamps)
            lengths[w], made = merge_in_word(
                symbols, starts[w], lengths[w], a, b, new, weights[w], keys, counts, fresh
            )  # fmt: skip
            while nodes + made > len(node_word):
                node_word, node_next = doubled(node_word), doubled(node_next)
            while seen + made > len(touched):
                touched = doubled(touched)
            for k in range(made):
                at = find(keys, fresh[k])
                if keys[at] == _NONE:
                    keys[at] = fresh[k]
                    used += 1
                counts[at] += weights[w]
                if stamps[at] != done:
                    stamps[at] = done
                    touched[seen] = fresh[k]
                    seen += 1
                if heads[at] < 0 or node_word[heads[at]] != w:
                    node_word[nodes], node_next[nodes] = w, heads[at]
                    heads[at] = nodes
                    nodes += 1
        counts[find(keys, key)] = 0
        while size + seen > len(heap_keys):
            heap_counts, heap_keys = doubled(heap_counts), doubled(heap_keys)
        for k in range(seen):
            push(heap_counts, heap_keys, size, counts[find(keys, touched[k])], touched[k])
            size += 1
    return tokens, done
