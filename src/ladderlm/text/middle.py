"""Filling in the middle: the control tokens of the families that learnt it, and the ids they read."""

from __future__ import annotations

from collections.abc import Sequence

from ladderlm.errors import UsageError
from ladderlm.text.tokenizer import Tokenizer

MIDDLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")  # ours, and Qwen's
_FAMILIES = (
    MIDDLE,
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
)


def middle_ids(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """What a model reads to write what belongs between: prefix, suffix, then the middle. UsageError where its tokenizer
    has no tokens for that."""
    for names in _FAMILIES:
        marks = [tokenizer.control.get(name) for name in names]
        if None not in marks:
            before, after, between = (mark for mark in marks if mark is not None)
            start = tokenizer.document_start_id
            return [*(() if start is None else (start,)), before, *prefix, after, *suffix, between]
    raise UsageError(
        "this model does not fill in the middle", where="suffix", cure="leave it out, or use a model trained for that"
    )
