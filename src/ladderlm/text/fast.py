"""Encoding many texts at once with byte-level BPE of a known pattern, ids equal to those of the `tokenizers` library.

What is not known here (another model, pattern or normalizer, added tokens that text may spell, a vocabulary without
all bytes) is left to that library, and so is a tokenizer whose probes come out otherwise.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers

from ladderlm import events
from ladderlm.text.patterns import Pattern, classes, pattern_of
from ladderlm.text.specs import byte_alphabet

WORDS = 1 << 17  # places for words met before; half are used
PROBES = (
    'The quick brown fox, it\'s 12,345.67 (or "so")!  two  spaces\n\n\n\ttabs\t\tand\r\nlines   \n  end  ',
    "I'LL he'Re WE'VE don't 'tis 'S 'ſ O'Clock ''' a's1 's' ' s",
    "été Ünïcødé naïve — “quotes” … ½ x² №3 Ⅷ ٣٤٥ 一二三 １２３",
    "日本語のテキスト、中文字符。한국어 ไทย हिन्दी עברית العربية ру́сский ελληνικά",
    "🤖👩\u200d👩\u200d👧 🏳️\u200d🌈\u200b\u200d\ufeff \x00\x01\x7f\x85\xa0\u2028\u3000 \u1680x \x1cy",
    "def f(x):\n    return {'a': [x**2, 0xFF, 1e-9]}  # done\n\n\nclass A_b2:\n\tpass\n",
    "a" * 300 + "ab" * 100,
    "https://example.org/a?b=c&d=%20#e  user@example.org  2024-01-01T00:00:00Z",
    "<|im_end|></s>[MASK]<think> 1 22 333 4444 55555",
)


class FastEncoder:
    """Safe to share between threads; each call borrows one memory of words."""

    def __init__(
        self, pattern: Pattern, byte_ids: Sequence[int], pairs: np.ndarray, normalise: Callable[[str], str] | None
    ) -> None:
        """`byte_ids`: the id of each byte; `pairs` P x 3: left, right and both together, in the order of merging.

        `normalise` is called for texts beyond ASCII.
        """
        from ladderlm.text import encoding

        self._encode = encoding.encode_texts
        self._pattern, self._table, self._normalise = pattern, classes(), normalise
        self._byte_ids = np.array(byte_ids, np.int64)
        size = 1 << max(8, (4 * len(pairs)).bit_length())
        self._keys, self._values = np.full(size, 2**64 - 1, np.uint64), np.zeros((size, 2), np.int64)
        encoding.fill_pairs(pairs, self._keys, self._values)
        self._idle: queue.SimpleQueue[tuple[np.ndarray, ...]] = queue.SimpleQueue()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts end to end, uint32; where each text's ids end, int64). No lone surrogates."""
        if self._normalise:
            texts = [text if text.isascii() else self._normalise(text) for text in texts]
        data = [text.encode() for text in texts]
        ends = np.cumsum([len(d) for d in data], dtype=np.int64)
        joined = np.frombuffer(b"".join(data), np.uint8)
        out, out_ends = np.empty(len(joined), np.uint32), np.empty(len(ends), np.int64)
        try:
            memory = self._idle.get_nowait()
        except queue.Empty:
            memory = (
                np.zeros((WORDS, 4), np.uint64), np.empty(8 * WORDS, np.uint8), np.empty(4 * WORDS, np.uint32),
                np.zeros(3, np.int64),
            )  # fmt: skip
        known = (self._table, *self._pattern, self._byte_ids, self._keys, self._values)
        count = self._encode(joined, ends, *known, *memory, out, out_ends)
        self._idle.put(memory)
        return out[:count], out_ends


def fast_encoder(spec: Mapping[str, Any], control: Mapping[str, int], slow: tokenizers.Tokenizer) -> FastEncoder | None:
    """The encoder of a parsed tokenizer.json whose `control` tokens text cannot spell.

    None where the file's shape is not known here, or the probes come out otherwise than with `slow`.
    """
    model, vocab = spec["model"], spec["model"].get("vocab")
    pattern = pattern_of(spec.get("pre_tokenizer"))
    plain = model.get("type", "BPE") == "BPE" and not any(
        model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    )
    spoken = any(t["content"] not in control for t in spec.get("added_tokens") or ())
    normalizer = spec.get("normalizer")
    if pattern is None or not plain or spoken or normalizer not in (None, {"type": "NFC"}):
        return None
    byte_ids, pairs = [vocab.get(c) for c in byte_alphabet()], _pair_ids(model, vocab)
    made = {*byte_ids, *pairs[:, 2].tolist()}
    if None in made or not made.isdisjoint(control.values()):
        return None
    found = FastEncoder(pattern, byte_ids, pairs, normalizers.NFC().normalize_str if normalizer else None)
    ids, ends = found.encode(PROBES)
    wanted = [e.ids for e in slow.encode_batch_fast(list(PROBES), add_special_tokens=False)]
    if [part.tolist() for part in np.split(ids, ends[:-1])] == wanted:
        return found
    events.emit("tokenizer", "our own encoder gives other ids than the tokenizers library, which is used instead")
    return None


def _pair_ids(model: Mapping[str, Any], vocab: Mapping[str, int]) -> np.ndarray:
    rows = []
    for merge in model.get("merges") or ():
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        rows.append((vocab[a], vocab[b], vocab[a + b]))
    return np.array(rows, np.int64).reshape(-1, 3)
