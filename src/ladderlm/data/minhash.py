"""MinHash signatures of texts, and an index of them on disk that finds which texts are alike.

Broder 1997: the share of equal entries in two signatures is an unbiased estimate of the Jaccard index of the sets they
are drawn from, here word n-grams (lower case, what is no letter or digit aside; a character of a script without
spaces is a word). Indyk & Motwani 1998: texts that agree in all rows of one band are candidates; each is then held
against the estimate from the whole signatures. Of each entry 16 bits are kept (Li & König 2010, b-bit
MinHash; two agree by chance once in 65,536).

On disk lie the signatures and one file of band keys per band; linking holds one band and 8 bytes a text in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from ladderlm import events
from ladderlm.data.clean_kernels import points, tables

Signature = npt.NDArray[np.uint32]
_CHUNK = 4096  # texts whose signatures are held before they are written
_TRIED = 32  # of the different texts that share a band's key, a further one is compared with so many
_RECALL = 0.99  # of pairs a little above the threshold become candidates


def rows_of(threshold: float, permutations: int) -> int:
    """Rows of a band: the most (fewest false candidates) that still find pairs 0.05 above the threshold."""
    alike = min(threshold + 0.05, 1.0)
    fit = [r for r in range(1, permutations + 1) if 1 - (1 - alike**r) ** (permutations // r) >= _RECALL]
    return max(fit, default=1)


def bands_of(threshold: float, rows: int, permutations: int) -> int:
    """No more bands than that takes: each is 8 bytes a text on disk."""
    alike = min(threshold + 0.05, 1.0 - 1e-9)
    return min(permutations // rows, math.ceil(math.log(1 - _RECALL) / math.log1p(-(alike**rows))))


class MinHash:
    """Turns texts into signatures: uint32[permutations], the same on every machine."""

    def __init__(self, permutations: int = 512, ngram: int = 5) -> None:
        draws = np.random.Generator(np.random.PCG64(2022)).integers(1 << 32, size=(2, permutations), dtype=np.uint32)
        self._multiply, self._mask = draws[0] | np.uint32(1), draws[1]
        self._classes, self._ngram = tables()[0], ngram

    def __call__(self, text: str) -> Signature:
        return _signature(points(text.lower()), self._classes, self._ngram, self._multiply, self._mask)


class Index:
    """Texts are added in order; `link` then tells for each which is the first that is like it.

    With `minhash` None only exact repeats are found. Files lie in `folder`.
    """

    def __init__(self, folder: Path, minhash: MinHash | None, *, permutations: int = 512, threshold: float = 0.65):
        self._folder, self._minhash, self._permutations, self._threshold = folder, minhash, permutations, threshold
        self.rows = rows_of(threshold, permutations)
        self.bands = bands_of(threshold, self.rows, permutations) if minhash else 0
        self._open = ExitStack()
        self._exact = self._open.enter_context((folder / "exact").open("wb"))
        self._signatures = self._open.enter_context((folder / "signatures").open("wb"))
        self._band_files = [self._open.enter_context((folder / f"band{i}").open("wb")) for i in range(self.bands)]
        self._held: list[Signature] = []
        self.count = 0

    def add(self, text: str) -> None:
        # what differs in white space only is the same
        normal = " ".join(text.split()).encode("utf-8", "surrogatepass")
        self._exact.write(hashlib.blake2b(normal, digest_size=16).digest())
        self.count += 1
        if self._minhash:
            self._held.append(self._minhash(text))
            if len(self._held) == _CHUNK:
                self._write()

    def _write(self) -> None:
        if self._held:
            held = np.stack(self._held)
            self._signatures.write(held.astype(np.uint16).tobytes())
            for file, column in zip(self._band_files, _band_keys(held, self.rows, self.bands), strict=True):
                file.write(column.tobytes())
            self._held.clear()

    def link(self) -> Links:
        """Ends the adding. Texts that are alike, directly or through others, form a group; its first is its root."""
        self._write()
        self._open.close()
        parent = np.arange(self.count, dtype=np.int64)
        signatures: npt.NDArray[Any] = np.zeros((0, 0), np.uint16)
        if self.count:
            pairs = np.fromfile(self._folder / "exact", np.uint64).reshape(-1, 2)
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
            _link_equal(order, pairs, parent)
        exact = parent != np.arange(self.count)
        if self.count and self.bands:
            shape = (self.count, self._permutations)
            signatures = np.asarray(np.memmap(self._folder / "signatures", np.uint16, "r", shape=shape))
            needed = int(np.ceil(self._threshold * self._permutations))
            for band in events.track(range(self.bands), "dedup: bands", unit="bands"):
                keys = np.fromfile(self._folder / f"band{band}", np.uint64)
                _link_band(np.argsort(keys, kind="stable"), keys, signatures, parent, needed)
        for i in range(self.count):  # a root is never after its members
            parent[i] = parent[parent[i]]
        return Links(parent, exact, signatures)


class Links:
    """`root[i]` is the first text like text i (itself where there is none before it); `exact[i]`: it repeats one."""

    def __init__(self, root: npt.NDArray[np.int64], exact: npt.NDArray[np.bool_], signatures: npt.NDArray[Any]):
        self.root, self.exact, self._signatures = root, exact, signatures

    def similarity(self, i: int) -> float:
        """The estimated Jaccard index of text i and its root."""
        if self.exact[i] or not len(self._signatures):
            return 1.0
        return float(np.mean(self._signatures[i] == self._signatures[self.root[i]]))


# --- Kernels ------------------------------------------------------------------------------------------------------

_jit: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _spread(h: np.uint64) -> np.uint64:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@_jit
def _alone(code: Any) -> Any:
    """Scripts without spaces: Thai and Lao, kana, Han."""
    return 0x0E00 <= code < 0x0F00 or 0x3040 <= code < 0x3100 or 0x3400 <= code < 0xA000 or 0x20000 <= code < 0x32000


@_jit
def _lower(signature: Any, x: Any, multiply: Any, mask: Any) -> Any:
    """Each entry becomes the least of itself and its own hash of x."""
    for k in range(len(signature)):
        h = np.uint32(np.uint32(x ^ mask[k]) * multiply[k])
        h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D))
        signature[k] = min(signature[k], np.uint32(h ^ (h >> np.uint32(16))))


@_jit
def _signature(c: Any, classes: Any, ngram: Any, multiply: Any, mask: Any) -> Any:
    """The signature of the n-grams of words; of all words where there are fewer than n; all ones without a word."""
    signature = np.full(len(multiply), 0xFFFFFFFF, np.uint32)
    last = np.zeros(ngram, np.uint64)  # a ring of the last words' hashes
    n, count, i = len(c), 0, 0
    while i < n:
        code = c[i]
        letter = code >= 65536 or classes[code] & np.uint16(4)
        if not letter and not _alone(code):
            i += 1
            continue
        h = (np.uint64(0xCBF29CE484222325) ^ np.uint64(code)) * np.uint64(0x100000001B3)
        i += 1
        while not _alone(code) and i < n and (c[i] >= 65536 or classes[c[i]] & np.uint16(4)) and not _alone(c[i]):
            h = (h ^ np.uint64(c[i])) * np.uint64(0x100000001B3)
            i += 1
        last[count % ngram] = _spread(h)
        count += 1
        if count >= ngram or i >= n:
            gram = np.uint64(0)
            for w in range(max(count - ngram, 0), count):
                gram = gram * np.uint64(0x9E3779B97F4A7C15) + last[w % ngram]
            _lower(signature, np.uint32(_spread(gram) >> np.uint64(32)), multiply, mask)
    if 0 < count < ngram:
        signature[:] = 0xFFFFFFFF
        gram = np.uint64(0)
        for w in range(count):
            gram = gram * np.uint64(0x9E3779B97F4A7C15) + last[w]
        _lower(signature, np.uint32(_spread(gram) >> np.uint64(32)), multiply, mask)
    return signature


@_jit
def _band_keys(signatures: Any, rows: Any, bands: Any) -> Any:
    """uint64[bands, texts]"""
    out = np.empty((bands, len(signatures)), np.uint64)
    for i in range(len(signatures)):
        for b in range(bands):
            h = np.uint64(b + 1)
            for r in range(b * rows, (b + 1) * rows):
                h = _spread(h ^ np.uint64(signatures[i, r]))
            out[b, i] = h
    return out


@_jit
def _root(parent: Any, i: Any) -> Any:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@_jit
def _join(parent: Any, i: Any, j: Any) -> Any:
    """The lower index becomes the root."""
    a, b = _root(parent, i), _root(parent, j)
    if a < b:
        parent[b] = a
    elif b < a:
        parent[a] = b


@_jit
def _link_equal(order: Any, pairs: Any, parent: Any) -> Any:
    for at in range(1, len(order)):
        i, j = order[at - 1], order[at]
        if pairs[i, 0] == pairs[j, 0] and pairs[i, 1] == pairs[j, 1]:
            _join(parent, i, j)


@_jit
def _link_band(order: Any, keys: Any, signatures: Any, parent: Any, needed: Any) -> Any:
    """Joins the texts of each run of equal keys whose signatures agree in `needed` entries."""
    tried = np.empty(_TRIED, np.int64)
    count, begin = 0, 0
    for at in range(len(order)):
        i = order[at]
        if at == 0 or keys[i] != keys[order[begin]]:
            begin, count = at, 0
        new = False  # the signature of a text without words is like no other
        for k in range(signatures.shape[1]):
            new = new or signatures[i, k] != 0xFFFF
        for t in range(count if new else 0):
            j = tried[t]
            if _root(parent, i) == _root(parent, j):
                new = False
                continue
            equal = 0
            for k in range(signatures.shape[1]):
                equal += signatures[i, k] == signatures[j, k]
            if equal >= needed:
                _join(parent, i, j)
                new = False
        if new and count < _TRIED:
            tried[count] = i
            count += 1
