"""Texts as vectors: pooled hidden states of an encoder or a decoder, of length 1.

Letters: N documents, T tokens of one, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ladderlm.errors import ContextOverflow, UsageError, nearest
from ladderlm.models.bounded import read_json
from ladderlm.types import FloatArray

if TYPE_CHECKING:
    from ladderlm.models.folder import ModelFiles

Documents = Sequence[Sequence[int]]
Hidden = Callable[[Documents], Sequence[FloatArray]]  # documents -> hidden_TD of each, after the last norm

_TOKENS = 2048  # read at a time
_POOLS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "mean": lambda hidden_TD: hidden_TD.mean(axis=0),
    "cls": lambda hidden_TD: hidden_TD[0],
    "last": lambda hidden_TD: hidden_TD[-1],
}
_STORED = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


class Embedder:
    """A model that turns texts into vectors. `hidden` is the network beneath it. Safe to share between threads."""

    def __init__(self, files: ModelFiles, hidden: Hidden, *, pooling: str = "") -> None:
        self.name, self.tokenizer, self._hidden = files.name, files.tokenizer, hidden
        self.dim, self.vocab_size = files.arch.dim, files.arch.vocab_size
        self.context_length = files.arch.context_length
        told = _told(files.path) if files.path.is_dir() else ""
        self.pooling = pooling or told or ("mean" if files.arch.kind == "encoder" else "last")
        if self.pooling not in _POOLS:
            raise UsageError(f"unknown pooling {self.pooling!r}", cure=nearest(self.pooling, _POOLS))

    def ids(self, text: str) -> list[int]:
        """A text's tokens, with what the model expects around them."""
        return self.tokenizer.encode_pair(text)[0]

    def embed(self, documents: Sequence[str | Sequence[int]], *, dimensions: int | None = None) -> FloatArray:
        """vectors_ND of texts, or of token ids as they are.

        `dimensions`: only so many of each vector's first coordinates, for models trained so that these are enough
        (Kusupati et al. 2022, "Matryoshka").
        """
        if dimensions is not None and not 0 < dimensions <= self.dim:
            raise UsageError(f"must lie between 1 and {self.dim}", where=f"dimensions={dimensions}")
        rows = [self._checked(self.ids(d) if isinstance(d, str) else d) for d in documents]
        pool = _POOLS[self.pooling]
        vectors_ND = np.empty((len(rows), self.dim), np.float32)
        for batch in _batches([len(row) for row in rows]):
            for i, hidden_TD in zip(batch, self._hidden([rows[i] for i in batch]), strict=True):
                vectors_ND[i] = pool(hidden_TD)
        vectors_ND = vectors_ND[:, :dimensions]
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return vectors_ND / np.maximum(norms_N1, np.float32(1e-12))

    def _checked(self, ids: Sequence[int]) -> Sequence[int]:
        if not len(ids):
            raise UsageError("a text has no tokens", where="embed")
        if len(ids) > self.context_length:
            what = f"{len(ids)} tokens do not fit the context of {self.context_length}"
            raise ContextOverflow(what, cure="shorten the text, or embed its parts")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise UsageError(f"a token id lies outside 0..{self.vocab_size - 1}", where=f"{min(ids)}..{max(ids)}")
        return ids


def open_embedder(ref: str) -> Embedder:
    """The Embedder of any local model reference."""
    from ladderlm.engine import load_embedder
    from ladderlm.models import open_model

    return load_embedder(open_model(ref))


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of documents, those of one length together, in batches of bounded size."""
    found: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not found or tokens + lengths[i] > _TOKENS:
            found.append([])
            tokens = 0
        found[-1].append(i)
        tokens += lengths[i]
    return found


def _told(folder: Path) -> str:
    """The pooling a folder states in the layout of sentence-transformers; "" where it states none."""
    if (folder / "modules.json").exists():
        kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in read_json(folder / "modules.json")]
        if more := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            what = f"layers of kind {', '.join(sorted(more))} after the pooling are not supported"
            raise UsageError(what, where=str(folder / "modules.json"))
    if not (folder / "1_Pooling" / "config.json").exists():
        return ""
    config = read_json(folder / "1_Pooling" / "config.json")
    on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in _STORED:
        raise UsageError(f"the pooling {', '.join(on)} is not supported", where=str(folder / "1_Pooling"))
    return _STORED[on[0]]
