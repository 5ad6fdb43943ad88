"""A GGUF vocabulary as a tokenizer.json: byte-level BPE ("gpt2") and SentencePiece BPE with scores ("llama")."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.errors import FormatError, nearest

_UNKNOWN, _CONTROL, _USER = 2, 3, 4  # tokenizer.ggml.token_type
_WORDS_3 = (  # GPT-4's split; {n} is how many digits make a group
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_LOOSE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_BYTES = {**_GPT2, "use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# What tokenizer.ggml.pre names: the steps that cut text into words.
_PRE: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [_DIGITS, _GPT2],
    "starcoder": [_DIGITS, _GPT2],
    "refact": [_DIGITS, _GPT2],
    "llama-bpe": [_split(_WORDS_3.format(n="{1,3}")), _BYTES],
    "qwen2": [_split(_WORDS_3.format(n="")), _BYTES],
    "default": [
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(_WORDS_LOOSE),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _BYTES,
    ],
}


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 is itself, the rest count from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, spare = [], 0x100
    for byte in range(256):
        table.append(chr(byte if byte in printable else spare))
        spare += byte not in printable
    return tuple(table)


def json_from_gguf(meta: Mapping[str, Any]) -> str:
    """The tokenizer.json text for the tokenizer.ggml.* keys. FormatError when they are missing or unknown."""
    model, tokens = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise FormatError("the GGUF file holds no vocabulary")
    types = meta.get("tokenizer.ggml.token_type")
    types = [1] * len(tokens) if types is None else [int(t) for t in types]
    if len(types) != len(tokens):
        raise FormatError("the GGUF vocabulary and its token types differ in length")
    if model == "gpt2":
        spec = _byte_level(meta, tokens)
    elif model == "llama":
        spec = _sentencepiece(meta, tokens, types)
    else:
        raise FormatError(f"the GGUF tokenizer {model!r} is not supported", cure="supported: gpt2, llama")
    spec["added_tokens"] = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != _USER,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token and kind in ((_CONTROL, _USER) if model == "gpt2" else (_UNKNOWN, _CONTROL, _USER))
    ]  # fmt: skip
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, **spec}, ensure_ascii=False)


def _byte_level(meta: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    pre = meta.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE:
        raise FormatError(f"the GGUF pre-tokenizer {pre!r} is not supported", cure=nearest(str(pre), _PRE))
    merges = meta.get("tokenizer.ggml.merges")
    pairs = [m.split(" ", 1) for m in merges] if isinstance(merges, list) else []
    if not pairs or any(len(p) != 2 for p in pairs):
        raise FormatError("the GGUF vocabulary has no sound merges")
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE[pre]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": pairs,
        },
    }  # fmt: skip


def _sentencepiece(meta: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """SentencePiece merges the pair whose union has the best score: the same as merges ordered by that score."""
    scores = meta.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise FormatError("the GGUF vocabulary has no sound scores")
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, i in vocab.items():
        if types[i] == 1 and 2 <= len(token) <= 64:
            cuts = ((token[:k], token[k:]) for k in range(1, len(token)))
            merges += [(-float(scores[i]), vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab]
    merges.sort()
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == _UNKNOWN), None)
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps = [{"type": "Prepend", "prepend": "▁"}, space] if prefix else [space]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [[a, b] for *_, a, b in merges],
        },
    }  # fmt: skip
