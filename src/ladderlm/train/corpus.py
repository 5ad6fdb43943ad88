"""Text as token ids on disk: tokenised once, memory-mapped ever after, and cut into windows by number."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ladderlm import events, store
from ladderlm.data.packing import Shuffle, best_fit
from ladderlm.data.records import make_record
from ladderlm.data.shards import Shards, is_shards, write_shards
from ladderlm.errors import UsageError
from ladderlm.nn.decoder import Decoder
from ladderlm.nn.loss import Batch, make_batch, nats
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Record

FORMAT = 2
HELD_OUT_PART = 20  # at most one in so many tokens of shards is kept apart
TOKENS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class Tokens:
    """`ids_N` of all documents end to end, each led by the document-start token; `starts` where each begins."""

    ids_N: np.ndarray | Shards
    starts: np.ndarray


def tokenise(records: Sequence[Record], tokenizer: Tokenizer) -> Tokens:
    """The texts of `records` as ids, from the cache when they have been tokenised before.

    Ids are uint16 where the vocabulary allows, else uint32, little-endian.
    """
    key = hashlib.sha256(f"{FORMAT}\0{tokenizer.to_json()}\0{tokenizer.document_start_id}".encode())
    for record in records:
        key.update(hashlib.sha256(record["text"].encode("utf-8", "surrogatepass")).digest())
    folder = store.cache_dir() / "tokens" / key.hexdigest()[:32]
    shards = Shards(folder) if is_shards(folder) else write_shards(records, tokenizer, folder)
    return Tokens(shards.ids_N, shards.starts)


@dataclass(frozen=True, slots=True)
class Sharded:
    """A folder of shards, ready for training: the last documents are kept apart as records."""

    tokens: Tokens
    tokenizer: Tokenizer
    held: list[Record]
    data: list[dict[str, Any]]


def from_shards(folder: str | Path, hold: int) -> Sharded:
    """The documents of a folder of shards, but at most `hold` bytes and a twentieth of the tokens at its end.

    `data` is what a lineage says of them: an entry per licence, with the content's hash and the stages it came by.
    Raises UsageError when there is no document to keep apart.
    """
    shards = Shards(folder)
    tokenizer, first, size = shards.tokenizer(), shards.documents, 0
    least = len(shards) - len(shards) // HELD_OUT_PART
    texts: list[str] = []
    while hold and first > 1 and size < hold and shards.starts[first - 1] >= least:
        first -= 1
        texts.append(tokenizer.decode(shards.document(first).tolist()))
        size += len(texts[-1].encode())
    if hold and not texts:
        raise UsageError("too few documents to keep one apart", where=str(folder), cure="give --held-out FILE")
    end = int(shards.starts[first]) if texts else len(shards)
    ids = shards.ids_N[:end] if isinstance(shards.ids_N, np.ndarray) else shards.until(first)
    index = shards.index
    shared = {"source": str(folder), "sha256": index["content_sha256"], "stages": index["lineage"]}
    data = [{**shared, "licence": name, "records": count} for name, count in sorted(index["licences"].items())]
    held = [make_record("text", {"text": text}, source=str(folder)) for text in reversed(texts)]
    return Sharded(Tokens(ids, shards.starts[:first]), tokenizer, held, data)


def windows(tokens: Tokens, seq_len: int, batch: int, seed: int, start_id: int) -> Callable[[int], Batch]:
    """The i-th batch of `batch` windows of `seq_len` targets each.

    In an epoch every token is a target once; each epoch cuts elsewhere and shuffles anew. A window is read as the
    document-start token and what follows, as windows are when the model is evaluated and prompts when it is used.
    """
    ids_N = tokens.ids_N
    count = (len(ids_N) - seq_len) // seq_len  # leaves room to begin an epoch at any offset below seq_len
    if count < 1:
        raise UsageError(f"only {len(ids_N)} tokens", where=f"seq_len={seq_len}", cure="give more text")

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> np.ndarray:
        rng = np.random.default_rng([seed, number])
        return rng.integers(seq_len) + seq_len * rng.permutation(count)

    wanted_N = torch.arange(batch * seq_len)

    def get(i: int) -> Batch:
        rows = []
        for number, place in (divmod(j, count) for j in range(i * batch, (i + 1) * batch)):
            start = int(epoch(number)[place])
            rows.append(np.concatenate([[start_id], ids_N[start : start + seq_len]]))
        ids_BT = torch.from_numpy(np.stack(rows).astype(np.int64))
        targets_N = ids_BT[:, 1:].reshape(-1)
        return Batch(ids_BT[:, :-1].reshape(-1), (seq_len,) * batch, wanted_N, targets_N)

    return get


def packed(tokens: Tokens, seq_len: int, batch: int, seed: int, start_id: int) -> Callable[[int], Batch]:
    """The i-th batch of `batch` rows of whole documents, packed best-fit; attention stays inside a document.

    In an epoch every token is a target once, in the same rows each time, shuffled anew. Only documents longer than
    `seq_len` are cut; what goes on is led by the document-start token, as windows are. Rows may fall short of seq_len.
    """
    ids_N, begins = tokens.ids_N, set(tokens.starts.tolist())
    rows = best_fit(tokens.starts, len(ids_N), seq_len)
    orders = functools.lru_cache(maxsize=2)(lambda epoch: Shuffle(len(rows), seed, epoch))

    def get(i: int) -> Batch:
        documents = []
        for epoch, place in (divmod(j, len(rows)) for j in range(i * batch, (i + 1) * batch)):
            for start, length in rows[orders(epoch)[place]]:
                ids = ids_N[start : start + length].tolist()
                led = start in begins and ids[0] == start_id
                documents.append(ids if led else [start_id, *ids])
        return make_batch([(ids, [True] * len(ids)) for ids in documents if len(ids) > 1])

    return get


@torch.no_grad()
def text_nats(decoder: Decoder, texts: Sequence[Sequence[int]], start_id: int) -> list[float]:
    """Negative log-likelihood of each text (ids without start token).

    A text longer than the context is cut into windows that do not overlap, each led by the start token: the windows
    of evals.perplexity, so that the figures agree.
    """
    size = decoder.room - 1
    pieces = [(n, [start_id, *text[i : i + size]]) for n, text in enumerate(texts) for i in range(0, len(text), size)]
    pieces.sort(key=lambda piece: len(piece[1]))
    total = [0.0] * len(texts)
    decoder.eval()
    together = max(1, TOKENS_AT_A_TIME // size)
    groups = [pieces[i : i + together] for i in range(0, len(pieces), together)]
    for group in events.track(groups, "measure", unit="batches"):
        batch = make_batch([(ids, [True] * len(ids)) for _, ids in group])
        spent = nats(decoder, batch).double().split(batch.lengths)
        for (number, _), values in zip(group, spent, strict=True):
            total[number] += values.sum().item()
    return total
