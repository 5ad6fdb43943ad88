"""What the scheduler knows of the machine beneath it: a network that appends pieces of sequences and gives logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ladderlm.engine.cache import KVCache
from ladderlm.engine.hot import LoadedAdapter
from ladderlm.models.adapter import Adapter
from ladderlm.models.arch import Architecture
from ladderlm.models.weights import Weights
from ladderlm.types import FloatArray


class Piece(NamedTuple):
    """Consecutive tokens of one sequence, to be appended to its cache; rows from `want` on get logits.

    A sequence has one `adapter` from its beginning, which is a fork of the adapter's `start`.
    """

    cache: KVCache
    ids: Sequence[int]
    want: int
    adapter: LoadedAdapter | None = None


class Backend(Protocol):
    """Runs steps of one decoder. Not for concurrent use; a row's logits never depend on the other rows."""

    @property
    def arch(self) -> Architecture: ...

    @property
    def block_bytes(self) -> int:
        """Memory of a cache block: keys and values of `cache.BLOCK` positions in every layer."""

    @property
    def max_rows(self) -> int:
        """Tokens that one `run` takes at most."""

    def cache(self) -> KVCache:
        """An empty sequence."""

    def run(self, pieces: Sequence[Piece]) -> FloatArray:
        """Appends every piece to its cache; logits (rows, vocab) of the wanted rows in order, valid until the next."""

    def adapt(self, adapter: Adapter) -> LoadedAdapter:
        """`adapter`, ready for pieces. FormatError where it does not fit. A tuned prompt is read with these weights:
        after `update` it must be made again. Not during `run`.
        """

    def update(self, weights: Weights) -> None:
        """Other weights, in the place of these, from the next run on."""

    def close(self) -> None:
        """Frees threads and memory."""
