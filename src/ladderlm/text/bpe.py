"""Training vocabularies: byte-level BPE by our own compiled loops, the others by the `tokenizers` library."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from ladderlm import events
from ladderlm.errors import UsageError, nearest
from ladderlm.text.patterns import PATTERNS, pre_tokenizer_spec
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNIGRAM_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
SMALL = 1 << 20  # characters: below, loading our own loops takes longer than the library needs


def train_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL, *, pattern: str = "smollm"
) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens (fewer when the texts hold too few pairs).

    All 256 bytes are in it, so every text round-trips. `special` get the ids 0, 1, ...; the first of them ends a
    document. `pattern` says how text is cut into words (patterns.PATTERNS): "smollm" has digits stand alone.
    The vocabulary is that of the `tokenizers` library, however much text there is. Raises UsageError for an unknown
    pattern, a size below 256 + special, or a special named twice.
    """
    if pattern not in PATTERNS:
        raise UsageError(f"unknown pattern {pattern!r}", cure=nearest(pattern, PATTERNS))
    _check(vocab_size, special, 256, "256 bytes")
    blank = {"type": "BPE", "vocab": {}, "merges": []}
    spec = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer_spec(pattern), "model": blank}
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    made.decoder = decoders.ByteLevel()
    source, head, size = iter(events.track(texts, "tokenizer", unit="texts")), [], 0
    for text in source:
        head.append(_sound(text))
        size += len(text)
        if size >= SMALL:
            break
    end = SpecialTokens(eos=0, document_start=0) if special else SpecialTokens()
    if size < SMALL:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            head,
            trainers.BpeTrainer(
                vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
            ),
        )
        return Tokenizer.from_json(made.to_str(), end)
    from ladderlm.text.words import WordCounts, learn_merges

    counts = WordCounts(PATTERNS[pattern])
    counts.add(text.encode("utf-8", "replace") for text in itertools.chain(head, source))
    made.add_special_tokens(list(special))
    spec = json.loads(made.to_str())
    spec["model"]["vocab"], spec["model"]["merges"] = learn_merges(counts, vocab_size, special)
    return Tokenizer.from_json(json.dumps(spec, ensure_ascii=False), end)


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = WORDPIECE_SPECIAL, *, lowercase: bool = False
) -> Tokenizer:
    """A WordPiece tokenizer as BERT's. `special` must begin as WORDPIECE_SPECIAL does."""
    _check(vocab_size, special, 1, "one character")
    _begins(special, WORDPIECE_SPECIAL)
    made = tokenizers.Tokenizer(models.WordPiece(unk_token=WORDPIECE_SPECIAL[1]))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(special), show_progress=False)
    made.train_from_iterator(_sounds(texts), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return Tokenizer.from_json(made.to_str())


def train_unigram(texts: Iterable[str], vocab_size: int, special: Sequence[str] = UNIGRAM_SPECIAL) -> Tokenizer:
    """A Unigram tokenizer as SentencePiece's (Kudo, 2018): ▁ for spaces, </s> after a text.

    All 256 bytes are in it, for characters that the texts did not hold. `special` must begin as UNIGRAM_SPECIAL does.
    """
    _check(vocab_size, special, 257, "256 bytes and a character")
    _begins(special, UNIGRAM_SPECIAL)
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 256, special_tokens=list(special), unk_token=UNIGRAM_SPECIAL[1], show_progress=False
    )
    made.train_from_iterator(_sounds(texts), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 3)]
    )
    spec = json.loads(made.to_str())
    pieces = spec["model"]["vocab"]
    least = min(score for _, score in pieces)
    pieces += [[f"<0x{b:02X}>", least - 10] for b in range(256)]  # a byte never beats a piece
    spec["model"]["byte_fallback"] = True
    return Tokenizer.from_json(json.dumps(spec, ensure_ascii=False))


def _check(vocab_size: int, special: Sequence[str], rest: int, what: str) -> None:
    if len(set(special)) != len(special) or not all(special):
        raise UsageError("special tokens must be distinct and not empty", where=", ".join(special))
    least = rest + len(special)
    if vocab_size < least:
        raise UsageError(f"vocab_size must be at least {least} ({what} and the special tokens), not {vocab_size}")


def _begins(special: Sequence[str], wanted: Sequence[str]) -> None:
    if tuple(special[: len(wanted)]) != tuple(wanted):
        raise UsageError("this kind needs its own special tokens first", cure=" ".join(wanted))


def _sound(text: str) -> str:
    """Lone surrogates become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _sounds(texts: Iterable[str]) -> Iterable[str]:
    return map(_sound, events.track(texts, "tokenizer", unit="texts"))
