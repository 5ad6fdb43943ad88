"""Whether two models can stand for one another: the same architecture, the same tokens."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ladderlm.errors import UsageError
from ladderlm.models.arch import Architecture
from ladderlm.models.folder import ModelFiles
from ladderlm.text.tokenizer import Tokenizer

PROBES = (
    "The quick brown fox jumps over the lazy dog.", "  two  spaces\n\n\tand a tab", "it's 12,345.67 €, naïve — œuvre",
    "def f(x):\n    return x**2  # code", "日本語と中文, العربية, русский", "🙂👩‍🚀 emoji", "<|im_start|>user", "ÅÅ ﬁ",
)  # fmt: skip
_SHAPING = ("context_length",)  # does not change what tensors mean


def fields(a: Architecture, b: Architecture) -> list[tuple[str, Any, Any]]:
    """(field, of a, of b) where two architectures differ."""
    names = [f.name for f in dataclasses.fields(Architecture)]
    return [(n, getattr(a, n), getattr(b, n)) for n in names if getattr(a, n) != getattr(b, n)]


def tokenizers(a: Tokenizer, b: Tokenizer) -> list[str]:
    """How two tokenizers differ, in sentences; empty where they agree on tokens, special tokens and probe texts."""
    found = []
    if a.vocab_size != b.vocab_size:
        found.append(f"{a.vocab_size:,} tokens and {b.vocab_size:,}")
    shared = range(min(a.vocab_size, b.vocab_size))
    if other := [i for i in shared if a.token_bytes(i) != b.token_bytes(i)]:
        i = other[0]
        found.append(
            f"{len(other):,} ids stand for other tokens, such as {i}: {a.token_text(i)!r}, {b.token_text(i)!r}"
        )
    for name, one, two in (
        ("bos", a.bos_id, b.bos_id), ("eos", a.eos_id, b.eos_id), ("stop", set(a.stop_ids), set(b.stop_ids)),
        ("adds bos", a.add_bos, b.add_bos), ("document start", a.document_start_id, b.document_start_id),
    ):  # fmt: skip
        if one != two:
            found.append(f"{name}: {one} and {two}")
    split = [text for text in PROBES if a.encode(text) != b.encode(text)]
    if split:
        found.append(f"{len(split)} of {len(PROBES)} probe texts become other ids, such as {json.dumps(split[0])}")
    return found


def must_fit(first: ModelFiles, other: ModelFiles) -> None:
    """UsageError, naming what differs, unless the tensors of both mean the same."""
    differing = [d for d in fields(first.arch, other.arch) if d[0] not in _SHAPING]
    if differing:
        name, one, two = differing[0]
        raise UsageError(
            f"the models are not of one architecture: {name} is {one!r} and {two!r}",
            where=f"{first.name}, {other.name}", cure="see: ladderlm models diff",
        )  # fmt: skip
    same = all(first.tokenizer.token_bytes(i) == other.tokenizer.token_bytes(i) for i in range(first.arch.vocab_size))
    if not same:
        raise UsageError(
            f"the models have not the same tokens: {tokenizers(first.tokenizer, other.tokenizer)[0]}",
            where=f"{first.name}, {other.name}", cure="their embeddings cannot be mixed",
        )  # fmt: skip
