"""What a tokenizer.json is made of, for the kinds of vocabulary that come in other files (GGUF, SentencePiece...)."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ladderlm.errors import FormatError

Spec = dict[str, Any]
SPACE = "▁"  # SentencePiece's stand-in for a space
UNKNOWN, CONTROL, USER, UNUSED, BYTE = 2, 3, 4, 5, 6  # what a token is, in SentencePiece and in GGUF; 1 is normal

_CASED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"  # GPT-2's, without `|\s+`
_WORDS_4 = (  # GPT-4's; {n} is how many digits make a group
    _CASED + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{n}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKS = (  # the same with combining marks as parts of words
    _CASED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = (  # words are cut where the case changes; {e} is an English ending, {n} the digits
    r"[^\r\n\p{{L}}\p{{N}}]?" + _UPPER.replace("{", "{{").replace("}", "}}") + "*"
    + _LOWER.replace("{", "{{").replace("}", "}}") + r"+{e}|[^\r\n\p{{L}}\p{{N}}]?"
    + _UPPER.replace("{", "{{").replace("}", "}}") + "+" + _LOWER.replace("{", "{{").replace("}", "}}")
    + r"*{e}|\p{{N}}{n}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
GPT2_WORDS = _WORDS_2 + r"|\s+"
_GPT2: Spec = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_BYTES: Spec = {**_GPT2, "use_regex": False}
_DIGITS: Spec = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@dataclass(frozen=True)
class Cut:
    """How byte-level BPE cuts text before it merges."""

    steps: tuple[Spec, ...]
    whole_words: bool = False  # a word that is in the vocabulary is taken as it is ("ignore_merges")
    nfc: bool = False


_LLAMA3 = (_split(_WORDS_4.format(n="{1,3}")), _BYTES)
_QWEN2 = (_split(_WORDS_4.format(n="")), _BYTES)

# By the names of tokenizer.ggml.pre. Of several names for the same steps the first is the one written.
CUTS: dict[str, Cut] = {
    "gpt-2": Cut((_GPT2,)),
    "smollm": Cut((_DIGITS, _GPT2)),
    "llama-bpe": Cut(_LLAMA3, whole_words=True),
    "dbrx": Cut(_LLAMA3),
    "qwen2": Cut(_QWEN2, nfc=True),
    "stablelm2": Cut(_QWEN2),
    "qwen35": Cut((_split(_MARKS), _BYTES), nfc=True),
    "gpt-4o": Cut((_split(_CASES.format(e=_CASED + "?", n="{1,3}")), _BYTES)),
    "tekken": Cut((_split(_CASES.format(e="", n="")), _BYTES), whole_words=True),
    "deepseek-v3": Cut(
        (
            _split(r"\p{N}{1,3}"),
            _split("[一-龥\u3040-ゟ゠-ヿ]+"),
            _split(
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _BYTES,
        )
    ),
    "falcon": Cut(
        (_split(r"[\p{P}\$\+<=>\^~\|`]+"), _split(_WORDS_2), _split(r"[0-9][0-9][0-9]"), _BYTES)
    ),
    "default": Cut(
        (_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_WORDS_2), _split(r"\p{N}+"), _split(r"[0-9][0-9][0-9]"), _BYTES)
    ),
}  # fmt: skip
_SAME = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "modern-bert", "roberta-bpe", "jina-v2-de", "jina-v2-es"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "glm4"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "megrez", "hunyuan"),
    "gpt-4o": ("llama4",),
}
CUTS |= {other: CUTS[name] for name, others in _SAME.items() for other in others}


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 is itself, the rest count from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table, spare = [], 0x100
    for byte in range(256):
        table.append(chr(byte if byte in printable else spare))
        spare += byte not in printable
    return tuple(table)


# --- Parts --------------------------------------------------------------------------------------------------------


def added(id: int, content: str, *, special: bool = True, normalized: bool = False) -> Spec:
    """One added token: text that is cut out before all else."""
    return {
        "id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": normalized, "special": special,
    }  # fmt: skip


def template(head: Sequence[tuple[str, int]], tail: Sequence[tuple[str, int]], *, types: bool = False) -> Spec | None:
    """The post-processor `head A tail`, and `head A tail B tail` for pairs. With `types` (BERT) B has token type 1;
    without, B has its own head (Llama)."""
    if not head and not tail:
        return None

    def special(tokens: Sequence[tuple[str, int]], kind: int) -> list[Spec]:
        return [{"SpecialToken": {"id": name, "type_id": kind}} for name, _ in tokens]

    def part(letter: str, kind: int, start: Sequence[tuple[str, int]]) -> list[Spec]:
        return [*special(start, kind), {"Sequence": {"id": letter, "type_id": kind}}, *special(tail, kind)]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0, head),
        "pair": part("A", 0, head) + part("B", 1 if types or head else 0, () if types else head),
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in (*head, *tail)},
    }


def whole(parts: Spec, tokens: Iterable[Spec] = ()) -> Spec:
    """A tokenizer.json of its parts."""
    base: Spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(tokens)}
    return {**base, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, **parts}


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **settings: Any) -> Spec:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **settings,
        "vocab": vocab, "merges": merges,
    }  # fmt: skip


# --- Kinds --------------------------------------------------------------------------------------------------------


def byte_level(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], cut: Cut) -> Spec:
    """Byte-level BPE (GPT-2 and most models since)."""
    return {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut.steps)},
        "decoder": {**_BYTES, "add_prefix_space": False},
        "model": _bpe(vocab, merges, ignore_merges=cut.whole_words),
    }


@dataclass(frozen=True)
class Spaces:
    """What SentencePiece does to text before it looks for pieces.

    `prefix`: one more space in front: "" no, "always" in front of all text and after every special token, "missing"
    the same unless there is one already, "first" as "missing" but at the very beginning only (the last two are
    ways of the `tokenizers` library). `squeeze`: spaces at both ends go, runs become one. `charsmap`: SentencePiece's
    compiled normalisation (usually NFKC).
    """

    prefix: str = "always"
    squeeze: bool = False
    charsmap: bytes = b""

    def parts(self) -> Spec:
        steps: list[Spec] = []
        if self.charsmap:
            steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap).decode()})
        if self.squeeze:
            steps.append(_replace({"Regex": r"\A +| +\z"}, ""))
            steps.append(_replace({"Regex": " {2,}"}, " "))
        if self.prefix == "always":
            steps.append({"type": "Prepend", "prepend": SPACE})
        steps.append(_replace({"String": " "}, SPACE))
        pre = None
        if self.prefix in ("missing", "first"):
            scheme = {"missing": "always", "first": "first"}[self.prefix]
            pre = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        back = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
        if self.prefix:
            back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": pre,
            "decoder": {"type": "Sequence", "decoders": back},
        }


def _replace(pattern: Spec, content: str) -> Spec:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sentencepiece_bpe(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[Sequence[str]], spaces: Spaces
) -> Spec:
    """SentencePiece BPE (Llama 2, Mistral, Gemma)."""
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    fallback = any(kind == BYTE for kind in types) or "<0x00>" in tokens
    vocab = {token: i for i, token in enumerate(tokens)}
    return {**spaces.parts(), "model": _bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)}


def merges_of(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose union has the best score: the same as merges ordered by that score."""
    vocab = {token: i for i, token in enumerate(tokens)}
    found = []
    for token, i in vocab.items():
        if types[i] == 1 and 2 <= len(token) <= 64:
            cuts = ((token[:k], token[k:]) for k in range(1, len(token)))
            found += [(-scores[i], vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab]
    found.sort()
    return [(a, b) for *_, a, b in found]


def unigram(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], spaces: Spaces) -> Spec:
    """SentencePiece Unigram (T5, XLM-R): the most probable pieces. FormatError without an unknown token."""
    if UNKNOWN not in types:
        raise FormatError("a Unigram vocabulary needs an unknown token")
    best = max((s for s, kind in zip(scores, types, strict=True) if kind == 1), default=0.0)
    pieces = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        longer = (len(token.encode()) - 1) * best  # as SentencePiece scores what its user defined: always preferred
        pieces.append([token, longer if kind == USER else score])
    fallback = any(kind == BYTE for kind in types)
    model = {"type": "Unigram", "unk_id": list(types).index(UNKNOWN), "vocab": pieces, "byte_fallback": fallback}
    return {**spaces.parts(), "model": model}


@dataclass(frozen=True)
class Bert:
    """How BERT prepares words. `strip_accents` None: where it lowers them."""

    lowercase: bool = True
    strip_accents: bool | None = None
    chinese: bool = True


def wordpiece(vocab: Mapping[str, int], bert: Bert, unknown: str = "[UNK]") -> Spec:
    """WordPiece (BERT): the longest pieces from the left, `##` in front of those inside a word."""
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": bert.chinese,
            "strip_accents": bert.strip_accents, "lowercase": bert.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip
