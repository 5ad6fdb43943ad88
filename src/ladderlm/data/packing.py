"""Rows of a fixed length out of documents, hardly any of them cut (Ding et al., 2024: "Fewer Truncations Improve
Language Modeling"), and orders that need no memory."""

from __future__ import annotations

import hashlib

import numpy as np

Piece = tuple[int, int]  # (where it begins among all tokens, its length)


def best_fit(starts: np.ndarray, total: int, size: int) -> list[list[Piece]]:
    """Rows of pieces, together at most `size` tokens each; every token is in exactly one row.

    Documents begin at `starts` (ascending, the first at 0) and end at `total`. Those longer than `size` are cut into
    whole rows and a rest; rests and short documents go, the longest first, each into the fullest row that has room
    for it. n log(size) steps. Equal input gives equal rows.
    """
    lengths = np.diff(np.append(starts, total))
    rows: list[list[Piece]] = []
    for start, length in zip(starts[lengths >= size].tolist(), lengths[lengths >= size].tolist(), strict=True):
        rows.extend([(start + size * k, size)] for k in range(length // size))
    rest = lengths % size
    first = starts + lengths - rest
    order = np.argsort(-rest, kind="stable")
    room = _Room(size)
    for piece, length in zip(first[order].tolist(), rest[order].tolist(), strict=True):
        if not length:
            break
        space = room.least(length)
        if space is None:
            rows.append([])
            row, space = len(rows) - 1, size
        else:
            row = room.take(space)
        rows[row].append((piece, length))
        room.put(space - length, row)
    return rows


class _Room:
    """Rows by how many tokens they can still take: a tree that finds the least room that is enough."""

    def __init__(self, size: int) -> None:
        self._leaves = 1 << (size + 1).bit_length()
        self._filled = bytearray(2 * self._leaves)
        self._rows: dict[int, list[int]] = {}

    def put(self, space: int, row: int) -> None:
        if not space:
            return
        self._rows.setdefault(space, []).append(row)
        at = self._leaves + space
        while at and not self._filled[at]:
            self._filled[at] = 1
            at //= 2

    def take(self, space: int) -> int:
        rows = self._rows[space]
        row = rows.pop()
        if not rows:
            at = self._leaves + space
            self._filled[at] = 0
            while at > 1 and not self._filled[at ^ 1]:
                at //= 2
                self._filled[at] = 0
        return row

    def least(self, length: int) -> int | None:
        """The smallest room of at least `length` that some row has."""
        at = self._leaves + length
        if self._filled[at]:
            return length
        while at > 1 and (at & 1 or not self._filled[at + 1]):
            at //= 2
        if at <= 1:
            return None
        at += 1
        while at < self._leaves:
            at = 2 * at if self._filled[2 * at] else 2 * at + 1
        return at - self._leaves


class Shuffle:
    """A permutation of range(count) that is computed place by place: `shuffle[i]`, the same on every machine.

    A Feistel network of four rounds over the next even number of bits; places beyond `count` walk on.
    """

    def __init__(self, count: int, *seed: int) -> None:
        self.count = count
        self._half = max(1, ((max(count, 2) - 1).bit_length() + 1) // 2)
        digest = hashlib.sha256(repr(seed).encode()).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(4)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> int:
        if not 0 <= i < self.count:
            raise IndexError(i)
        mask = (1 << self._half) - 1
        while True:
            left, right = i >> self._half, i & mask
            for key in self._keys:
                mixed = ((right ^ key) * 0x9E3779B97F4A7C15 + key) & 0xFFFFFFFFFFFFFFFF
                mixed = ((mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
                left, right = right, left ^ (mixed >> 32 & mask)
            i = left << self._half | right
            if i < self.count:
                return i
