"""Cutting UTF-8 into words without a regular expression, and counting the words. Compiled by numba.

`word_end` gives the very cuts of the patterns in specs.py; a test holds it against the `tokenizers` library.
`data` is sound UTF-8 in uint8, `table` the class of each code point (patterns.classes).
"""

from __future__ import annotations

import numpy as np

from ladderlm.text.jit import kernel
from ladderlm.text.patterns import BLANK, CL100K, GPT2, LETTER, NUMBER, SMOLLM

_QUOTE, _SPACE, _CR, _LF = 39, 32, 13, 10
_FULL = LETTER | NUMBER | BLANK
_MIX = np.uint64(0x9E3779B97F4A7C15)
_BYTE = np.uint64(8)
_TOP = np.uint64(29)
_ONE = np.uint64(1)
_LOW6 = np.uint32(63)
_6, _12, _18 = np.uint32(6), np.uint32(12), np.uint32(18)


@kernel
def char_at(data, i, table):  # type: ignore[no-untyped-def]
    """(class, bytes) of the character at `i`."""
    at = np.uint64(i)  # unsigned here and below: numba then looks for no index below zero
    b = np.uint32(data[at])
    if b < 0x80:
        return np.int64(table[b]), 1
    c = np.uint32(data[at + _ONE]) & _LOW6
    if b < 0xE0:
        return np.int64(table[(b & np.uint32(31)) << _6 | c]), 2
    d = np.uint32(data[at + np.uint64(2)]) & _LOW6
    if b < 0xF0:
        return np.int64(table[(b & np.uint32(15)) << _12 | c << _6 | d]), 3
    e = np.uint32(data[at + np.uint64(3)]) & _LOW6
    return np.int64(table[(b & np.uint32(7)) << _18 | c << _12 | d << _6 | e]), 4


@kernel
def run_end(data, i, end, table, mask, wanted):  # type: ignore[no-untyped-def]
    """Where the run of characters of class `wanted` (under `mask`) that begins at `i` ends."""
    at, stop = np.uint64(i), np.uint64(end)
    while True:
        while at < stop and data[at] < 0x80 and table[np.uint64(data[at])] & mask == wanted:
            at += _ONE
        if at >= stop or data[at] < 0x80:
            return np.int64(at)
        kind, size = char_at(data, np.int64(at), table)
        if kind & mask != wanted:
            return np.int64(at)
        at += np.uint64(size)


@kernel
def contraction(data, i, end, cased):  # type: ignore[no-untyped-def]
    """The bytes of 's 't 'm 'd 're 've 'll at `i`, 0 if none; capitals and ſ (U+017F) too unless `cased`."""
    if i + 1 >= end:
        return 0
    fold = 0 if cased else 32
    a = data[i + 1] | fold
    if a == 115 or a == 116 or a == 109 or a == 100:
        return 2
    if not cased and i + 2 < end and data[i + 1] == 0xC5 and data[i + 2] == 0xBF:
        return 3
    if i + 2 < end:
        b = data[i + 2] | fold
        if ((a == 114 or a == 118) and b == 101) or (a == 108 and b == 108):
            return 3
    return 0


@kernel
def blanks_end(data, i, end, table, style):  # type: ignore[no-untyped-def]
    """The word that begins with the blank at `i`: all blanks but the last, which goes with what follows.

    At the end of the text, and before a digit that SMOLLM cuts off first, there is nothing to leave one for.
    CL100K takes line ends first, with all blanks before the last of them.
    """
    j, last, line = i, i, -1
    while j < end:
        kind, size = char_at(data, j, table)
        if not kind & BLANK:
            break
        if data[j] == _CR or data[j] == _LF:
            line = j + 1
        last = j
        j += size
    if style == CL100K and line >= 0:
        return line
    if j == end or last == i:
        return j
    if style == SMOLLM and char_at(data, j, table)[0] & NUMBER:
        return j
    return last


@kernel
def word_end(data, i, end, table, style, digits):  # type: ignore[no-untyped-def]
    """Where the word that begins at `i` < `end` ends."""
    b = data[i]
    if b == _QUOTE:
        size = contraction(data, i, end, style != CL100K)
        if size:
            return i + size
    kind, size = char_at(data, i, table)
    if kind & LETTER:
        return run_end(data, i + size, end, table, LETTER, LETTER)
    if kind & NUMBER:
        if style == SMOLLM:
            return i + size
        if style != CL100K:
            return run_end(data, i + size, end, table, NUMBER, NUMBER)
        j = i + size
        for _ in range(digits - 1):
            if j < end:
                kind, size = char_at(data, j, table)
                if not kind & NUMBER:
                    break
                j += size
        return j
    j = i + size
    if j < end and (b == _SPACE or (style == CL100K and b != _CR and b != _LF)):
        after, size = char_at(data, j, table)
        if after & LETTER:
            return run_end(data, j + size, end, table, LETTER, LETTER)
        if b == _SPACE:
            if after & NUMBER:
                if style != GPT2:
                    return j
                return run_end(data, j + size, end, table, NUMBER, NUMBER)
            if not after & BLANK:
                kind = 0
    if kind & BLANK:
        return blanks_end(data, i, end, table, style)
    j = run_end(data, j, end, table, _FULL, 0)
    if style == CL100K:
        while j < end and (data[j] == _CR or data[j] == _LF):
            j += 1
    return j


@kernel
def cut(data, end, table, style, digits, out):  # type: ignore[no-untyped-def]
    """Writes the end of each word into `out`; returns how many."""
    i, n = 0, 0
    while i < end:
        i = word_end(data, i, end, table, style, digits)
        out[n] = i
        n += 1
    return n


@kernel
def word_key(data, i, j):  # type: ignore[no-untyped-def]
    """Up to 8 bytes themselves, little-endian; of longer words a hash."""
    key, at, stop = np.uint64(0), np.uint64(i), np.uint64(j)
    if j - i <= 8:
        shift = np.uint64(0)
        while at < stop:
            key |= np.uint64(data[at]) << shift
            shift += _BYTE
            at += _ONE
        return key
    while at < stop:
        key = (key ^ np.uint64(data[at])) * _MIX
        key ^= key >> _TOP
        at += _ONE
    return key


@kernel
def place(key, length, mask):  # type: ignore[no-untyped-def]
    """Where the search for a key begins in a table of mask + 1 places."""
    h = (key + np.uint64(length)) * _MIX
    return np.int64(h >> np.uint64(32)) & mask


@kernel
def same(pool, at, data, i, length):  # type: ignore[no-untyped-def]
    a, b = np.uint64(at), np.uint64(i)
    for _ in range(length):
        if pool[a] != data[b]:
            return False
        a += _ONE
        b += _ONE
    return True


@kernel
def count_words(data, ends, table, style, digits, slots, keys, starts, counts, pool, state):  # type: ignore[no-untyped-def]
    """Counts the words of the texts that end at `ends`, from where `state` says; False when a table is full.

    `slots` holds word numbers + 1; word w has `keys[w]`, its bytes pool[starts[w]:starts[w + 1]] and `counts[w]`.
    `state` is (text, byte, words).
    """
    mask, n, i = len(slots) - 1, state[2], state[1]
    for text in range(state[0], len(ends)):
        end = ends[text]
        while i < end:
            j = word_end(data, i, end, table, style, digits)
            length = j - i
            key = word_key(data, i, j)
            at = place(key, length, mask)
            while True:
                w = slots[at] - 1
                if w < 0:
                    if 2 * n + 2 > len(slots) or n + 1 >= len(starts) or starts[n] + length > len(pool):
                        state[0], state[1], state[2] = text, i, n
                        return False
                    slots[at] = n + 1
                    keys[n], counts[n], starts[n + 1] = key, 1, starts[n] + length
                    pool[starts[n] : starts[n] + length] = data[i:j]
                    n += 1
                    break
                alike = keys[w] == key and starts[w + 1] - starts[w] == length
                if alike and (length <= 8 or same(pool, starts[w], data, i, length)):
                    counts[w] += 1
                    break
                at = (at + 1) & mask
            i = j
    state[0], state[1], state[2] = 0, 0, n
    return True


@kernel
def refill(slots, keys, starts, n):  # type: ignore[no-untyped-def]
    """Puts the first `n` words into an empty table."""
    mask = len(slots) - 1
    for w in range(n):
        at = place(keys[w], starts[w + 1] - starts[w], mask)
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = w + 1
