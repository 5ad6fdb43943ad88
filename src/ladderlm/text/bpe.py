"""Training a byte-level BPE vocabulary (Sennrich et al., 2016; over bytes as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ladderlm import events
from ladderlm.errors import UsageError
from ladderlm.text.tokenizer import SpecialTokens, Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_bpe(texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens (fewer when the texts hold too few pairs).

    All 256 bytes are in it, so every text round-trips; digits stand alone. `special` get the ids 0, 1, ...; the
    first of them ends a document. Raises UsageError for a size below 256 + special, or a special named twice.
    """
    if len(set(special)) != len(special) or not all(special):
        raise UsageError("special tokens must be distinct and not empty", where=", ".join(special))
    if vocab_size < 256 + len(special):
        least = f"{256 + len(special)} (256 bytes and the special tokens)"
        raise UsageError(f"vocab_size must be at least {least}, not {vocab_size}")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(events.track(texts, "tokenizer", unit="texts"), trainer)
    end = 0 if special else None
    return Tokenizer.from_json(made.to_str(), SpecialTokens(eos=end, document_start=end))
