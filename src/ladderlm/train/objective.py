"""What a model is pretrained to do: one small class for each, all seen through the same few methods.

causal: say the next token. fim: the same, and fill in the middle. mlm: fill in masked tokens. mlm+nsp: and tell
whether the second text follows the first. spans: write what was cut out of a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from ladderlm.data.shards import Shards
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.text.bpe import train_bpe
from ladderlm.text.specs import template
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer
from ladderlm.train.corpus import Tokens, windows
from ladderlm.train.settings import PretrainConfig
from ladderlm.types import Record


class Objective(Protocol):
    """One way to pretrain, for given settings and a tokenizer."""

    kind: str  # the kind of model that it trains
    tokenizer: Tokenizer

    def build(self, arch: Architecture) -> nn.Module:
        """A model with random weights."""

    def load(self, files: ModelFiles) -> nn.Module:
        """The model in `files`, to be trained on."""

    def batches(self, tokens: Tokens) -> Callable[[int], Any]:
        """The i-th batch, the same whenever asked."""

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """A batch's mean loss, and figures to log."""

    def held_out_loss(self, model: Any, held: Sequence[Record]) -> float:
        """The loss on text that the model does not learn from."""

    def measure(self, model: Any, held: Sequence[Record], tokens: Tokens) -> tuple[dict[str, Any], str]:
        """Scores on such text beside those of simple baselines, and what they say in a sentence or two."""

    def sample(self, model: Any, held: Sequence[Record]) -> list[dict[str, Any]]:
        """A few things that the model now says."""


def text_windows(tokens: Tokens, size: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """The i-th block ids_BT of windows of the text, as `corpus.windows` cuts it."""
    get = windows(tokens, size, batch, seed, 0)
    return lambda i: get(i).targets_N.view(batch, size).numpy()


def framed(texts: Sequence[str], vocab_size: int, names: Sequence[str], head: str, tail: str) -> Tokenizer:
    """A new byte-level BPE tokenizer with these special tokens that puts `head` before a text and `tail` after it."""
    made = train_bpe(texts, vocab_size, names)
    ids = {name: i for i, name in enumerate(names)}
    spec = json.loads(made.to_json())
    around = [[(name, ids[name])] if name else [] for name in (head, tail)]
    spec["post_processor"] = template(around[0], around[1], types=bool(head))
    special = SpecialTokens(bos=ids.get(head), eos=ids[tail], add_bos=bool(head))
    return Tokenizer.from_json(json.dumps(spec, ensure_ascii=False), special)


class Counts:
    """How often tokens come, alone and after another: what a model must beat."""

    def __init__(self, ids_N: np.ndarray | Shards, vocab_size: int) -> None:
        ids = np.asarray(ids_N, dtype=np.int64)
        self.single_V = np.bincount(ids, minlength=vocab_size) + 1.0
        pairs, counts = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
        order = np.argsort(counts, kind="stable")  # the most frequent is written last, and stays
        self.next_V = np.full(vocab_size, int(self.single_V.argmax()))
        self.next_V[pairs[order] // vocab_size] = pairs[order] % vocab_size

    @property
    def commonest(self) -> int:
        return int(self.single_V.argmax())

    def nats(self, ids: np.ndarray) -> float:
        """The mean negative log-likelihood of `ids` by their frequencies."""
        return float(-np.log(self.single_V[ids] / self.single_V.sum()).mean())


def proportion(hits: int, count: int) -> Mapping[str, float]:
    """A share with its 95 % interval (Wilson 1927)."""
    z, share = 1.959964, hits / max(count, 1)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return {"share": share, "low": middle - half, "high": middle + half}


def held_tokens(tokenizer: Tokenizer, held: Sequence[Record], least: int) -> Tokens:
    """The held-out texts end to end; over again where they are fewer than `least` tokens."""
    rows = tokenizer.encode_batch([r["text"] for r in held])
    ids = np.array([i for row in rows for i in row], dtype=np.int64)
    ids = np.resize(ids, max(len(ids), least))
    return Tokens(ids, np.cumsum([0, *map(len, rows)])[:-1])


def held_batches(get: Callable[[int], Any], tokens: Tokens, size: int, batch: int) -> list[Any]:
    """About one pass over `tokens`."""
    return [get(i) for i in range(max(1, len(tokens.ids_N) // (size * batch)))]


def sizes(config: PretrainConfig, vocab_size: int) -> dict[str, Any]:
    """The sizes that all kinds of architecture share."""
    plain = config.architecture(vocab_size)
    names = ("vocab_size", "dim", "layers", "heads", "head_dim", "hidden", "context_length")
    return {name: getattr(plain, name) for name in names} | {"kv_heads": plain.heads}
