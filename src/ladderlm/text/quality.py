"""How good a tokenizer is on given texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ladderlm.text.tokenizer import Tokenizer


def measure(tokenizer: Tokenizer, kinds: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Bytes per token for each kind of text and for all; tokens per word; the share of the vocabulary that is used;
    how many texts do not come back as they were; megabytes encoded per second of processor time (all threads)."""
    by_kind: dict[str, float] = {}
    size = tokens = words = lost = 0
    seconds = 0.0
    used = np.zeros(tokenizer.vocab_size, bool)
    for kind, texts in kinds.items():
        begun = time.process_time()
        ids, ends = tokenizer.encode_arrays(texts)
        seconds += time.process_time() - begun
        here = sum(len(text.encode("utf-8", "replace")) for text in texts)
        by_kind[kind] = round(here / max(len(ids), 1), 3)
        size, tokens, words = size + here, tokens + len(ids), words + sum(len(text.split()) for text in texts)
        used[ids] = True
        parts = np.split(ids, ends[:-1]) if texts else []
        lost += sum(tokenizer.decode(part.tolist()) != text for part, text in zip(parts, texts, strict=True))
    return {
        "vocab_size": tokenizer.vocab_size,
        "texts": sum(map(len, kinds.values())),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": round(size / max(tokens, 1), 3),
        "tokens_per_word": round(tokens / max(words, 1), 3),
        "vocabulary_used": round(float(used.mean()), 4),
        "round_trip": lost == 0,
        "texts_changed": lost,
        "megabytes_per_second": round(size / 1e6 / max(seconds, 1e-9), 2),
        "by_kind": by_kind,
    }
