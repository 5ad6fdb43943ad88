"""Counting the words of any amount of text, and learning byte-pair merges from them: the compiled loops' other half."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ladderlm.text import merging, scan
from ladderlm.text.patterns import Pattern, classes
from ladderlm.text.specs import byte_alphabet

CHUNK = 1 << 22  # bytes scanned at a time
Merges = list[tuple[str, str]]


class WordCounts:
    """How often each word was seen. Memory follows the number of different words, not the text."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern, self._table = pattern, classes()
        self._slots = np.zeros(1 << 17, np.int32)
        self._keys, self._counts = np.zeros(1 << 16, np.uint64), np.zeros(1 << 16, np.int64)
        self._starts, self._pool = np.zeros((1 << 16) + 1, np.int64), np.zeros(1 << 20, np.uint8)
        self._words = 0

    def add(self, texts: Iterable[bytes]) -> None:
        """Counts the words of sound UTF-8."""
        for data, ends in joined(texts):
            state = np.array([0, 0, self._words])
            args = (data, ends, self._table, *self._pattern)
            while not scan.count_words(*args, self._slots, self._keys, self._starts, self._counts, self._pool, state):
                self._grow(int(state[2]), len(data) - int(state[1]))
            self._words = int(state[2])

    def _grow(self, words: int, left: int) -> None:
        """Twice the room for words, and room for one that is all of what is left."""
        size = 2 * len(self._slots)
        self._keys, self._counts = np.resize(self._keys, size // 2), np.resize(self._counts, size // 2)
        self._starts = np.resize(self._starts, size // 2 + 1)
        pool = np.empty(2 * len(self._pool) + left, np.uint8)
        pool[: len(self._pool)] = self._pool
        self._pool, self._slots = pool, np.zeros(size, np.int32)
        scan.refill(self._slots, self._keys, self._starts, words)

    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bytes, starts, counts): word w is bytes[starts[w]:starts[w + 1]]."""
        starts = self._starts[: self._words + 1]
        return self._pool[: starts[-1]], starts, self._counts[: self._words]


def joined(texts: Iterable[bytes], size: int = CHUNK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Texts end to end, some `size` bytes at a time: (bytes, where each text ends)."""
    held: list[bytes] = []
    room = 0
    for text in texts:
        held.append(text)
        room += len(text)
        if room >= size:
            yield _join(held)
            held, room = [], 0
    if held:
        yield _join(held)


def _join(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([len(t) for t in texts], dtype=np.int64)
    return np.frombuffer(texts[0] if len(texts) == 1 else b"".join(texts), np.uint8), ends


def learn_merges(counts: WordCounts, vocab_size: int, special: Sequence[str]) -> tuple[dict[str, int], Merges]:
    """The vocabulary and merges of a tokenizer.json: special tokens, all bytes in the order of the characters that
    stand for them, then what was merged."""
    alphabet = byte_alphabet()
    order = sorted(range(256), key=lambda b: alphabet[b])
    byte_of = {c: b for b, c in enumerate(alphabet)}
    ids = np.empty(256, np.int32)
    ids[order] = np.arange(256) + len(special)
    spelled = [bytes(byte_of[c] for c in s) if byte_of.keys() >= set(s) else b"" for s in special]
    spelled += [bytes([b]) for b in order]
    pool = np.frombuffer(b"".join(spelled).ljust(1 << 16, b"\0"), np.uint8).copy()
    starts = np.zeros(vocab_size + 2, np.int64)
    starts[1 : len(spelled) + 1] = np.cumsum([len(s) for s in spelled])
    slots = np.full(1 << (4 * vocab_size).bit_length(), -1, np.int32)
    merging.enter_tokens(pool, starts, slots, len(spelled))
    merges = np.zeros((2 * vocab_size, 3), np.int32)
    data, word_starts, weights = counts.words()
    _, made = merging.learn(ids[data], word_starts, weights, pool, starts, slots, len(spelled), vocab_size, merges)
    names = [*special, *(alphabet[b] for b in order)]
    pairs = []
    for a, b, new in merges[:made].tolist():
        pairs.append((names[a], names[b]))
        if new == len(names):
            names.append(names[a] + names[b])
    return {name: id for id, name in enumerate(names)}, pairs
