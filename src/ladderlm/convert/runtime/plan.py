"""A tokenizer.json as the bundle's run.py wants it: cut, merge and prefix rules in terms of Python's own `re`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from ladderlm.convert.runtime.run import STANDS
from ladderlm.errors import UsageError
from ladderlm.text.parts import steps_of
from ladderlm.text.specs import SPACE, byte_alphabet
from ladderlm.text.tokenizer import Tokenizer

_PROPERTIES = ("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "P", "S")
_SEEN = [*map(chr, range(128)), *STANDS.values(), "ſ"]  # all that run.py shows to a pattern
_BLANKS = r"\t\n\x0b\x0c\r \xa0"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PART = re.compile(r"\\p\{(\w+)\}|\\(.)|([?*+}]\+)|(.)", re.DOTALL)
Step = Mapping[str, Any]


def tokenizer_plan(tokenizer: Tokenizer) -> dict[str, Any]:
    """What run.py's Tokenizer needs beside the vocabulary and the merges. UsageError for a tokenizer it cannot be."""
    spec = json.loads(tokenizer.to_json())
    model, byte_level = spec["model"], tokenizer.kind == "byte-level"
    if model.get("type", "BPE") != "BPE" or tokenizer.kind not in ("byte-level", "sentencepiece"):
        raise _refuse(f"{model.get('type')} tokenizer")
    for setting in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(setting):
            raise _refuse(setting)
    fallback = bool(model.get("byte_fallback"))
    if fallback and not {f"<0x{b:02X}>" for b in range(256)} <= model["vocab"].keys():
        raise _refuse("byte fallback without all bytes")
    normalizer, pre = steps_of(spec.get("normalizer")), steps_of(spec.get("pre_tokenizer"))
    nfc = [step["type"] for step in normalizer] == ["NFC"]
    if byte_level and normalizer and not nfc:
        raise _refuse(f"normaliser {normalizer[0]['type']}")
    start = tokenizer.document_start_id
    return {
        "letters": "".join(byte_alphabet()) if byte_level else "",
        "cuts": [translated(pattern) for step in pre for pattern in _patterns(step)] if byte_level else [],
        "prefix": "" if byte_level else _prefix(normalizer, pre),
        "nfc": byte_level and nfc,
        "whole_words": bool(model.get("ignore_merges")),
        "unknown": tokenizer.unk_id,
        "fuse": bool(model.get("fuse_unk")),
        "fallback": fallback,
        "control": tokenizer.control,
        **_added(spec, tokenizer, byte_level),
        "document_start": [] if start is None else [start],
        "stop": list(tokenizer.stop_ids),
    }


def _refuse(what: str) -> UsageError:
    cure = "byte-level BPE and SentencePiece BPE with the usual steps can be"
    return UsageError(f"a tokenizer with {what} cannot be bundled", where="tokenizer.json", cure=cure)


def _added(spec: Step, tokenizer: Tokenizer, byte_level: bool) -> dict[str, Any]:
    """Added tokens that text may spell, and control tokens that eat the blanks beside them."""
    added = {}
    for token in spec.get("added_tokens") or ():
        name = token["content"]
        if name in tokenizer.control or not name:
            continue
        moved = token.get("normalized") and not (byte_level and unicodedata.is_normalized("NFC", name))
        if moved or any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            raise _refuse(f"the added token {name!r} that eats or is normalised")
        added[name] = token["id"]
    eats = {
        f"eats_{side}": [t["content"] for t in spec.get("added_tokens") or () if t.get(f"{side[0]}strip")]
        for side in ("left", "right")
    }
    return {"added": added, **eats}


def _prefix(normalizer: list[Step], pre: list[Step]) -> str:
    """How SentencePiece puts a space in front (see text.specs.Spaces)."""
    prefix, spaced = "", False
    for step in normalizer:
        replaces = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
        prepends = step["type"] == "Prepend" and step["prepend"] == SPACE
        if not (replaces or prepends):
            raise _refuse(f"normaliser {step['type']}")
        prefix, spaced = ("always" if prepends else prefix), spaced or replaces
    for step in pre:
        if step["type"] == "Metaspace" and not step.get("split", True) and step.get("replacement") == SPACE:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix, spaced = {"always": "missing", "first": "first"}.get(str(scheme), prefix), True
        elif not (spaced and step["type"] == "Split" and step["pattern"] == {"String": " "}):  # none are left
            raise _refuse(f"pre-tokenizer {step['type']}")
    if not spaced:
        raise _refuse("spaces as they are")
    return prefix


def _patterns(step: Step) -> Iterator[str]:
    """The patterns whose matches a pre-tokenizer isolates."""
    kind = step["type"]
    if kind == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step.get("invert"):
        yield step["pattern"]["Regex"]
    elif kind == "Digits":
        yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    elif kind == "Punctuation" and step.get("behavior", "Isolated") in ("Isolated", "Contiguous"):
        yield r"[\p{P}$+<=>^`|~]" + ("+" if step.get("behavior") == "Contiguous" else "")
    elif kind == "ByteLevel" and not step.get("add_prefix_space", True):
        if step.get("use_regex", True):
            yield _GPT2
    else:
        raise _refuse(f"pre-tokenizer {kind}")


def translated(pattern: str) -> str:
    r"""An Oniguruma pattern for Python's `re`, over text whose characters beyond ASCII stand for their kinds.

    Classes such as \p{L} become the characters of that kind that can occur. UsageError for what has no such form.
    """
    out, inside = [], False
    for found in _PART.finditer(pattern):
        name, escaped, possessive, char = found.groups()
        if name in _PROPERTIES:
            members = "".join(re.escape(c) for c in _SEEN if unicodedata.category(c).startswith(name))
            out.append(members if inside else f"[{members}]")
        elif escaped == "s":
            out.append(_BLANKS if inside else f"[{_BLANKS}]")
        elif escaped == "S" and not inside:
            out.append(f"[^{_BLANKS}]")
        elif escaped and (escaped in "rnt" or not escaped.isalnum()) and escaped.isascii():
            out.append("\\" + escaped)
        elif possessive and inside:
            out.append(possessive)
        elif char and char.isascii() and not (char == "[" and inside):
            inside = char == "[" or (inside and char != "]")
            out.append(char)
        else:
            raise _refuse(f"the pattern {pattern!r}")
    return "".join(out)
