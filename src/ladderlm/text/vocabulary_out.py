"""A tokenizer as the tokenizer.ggml.* metadata of a GGUF file: the way back of `vocabulary`.

What GGUF has no word for is a FormatError, since the file would cut text otherwise than the tokenizer: unknown
pre-tokenizers and normalisers. Not kept: blanks that an added token eats beside it (`lstrip`, `rstrip`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ladderlm import events
from ladderlm.errors import FormatError
from ladderlm.text import specs
from ladderlm.text.parts import steps_of
from ladderlm.text.specs import BYTE, CONTROL, SPACE, UNKNOWN, UNUSED, USER, Spaces
from ladderlm.text.tokenizer import Tokenizer, pairs
from ladderlm.text.vocabulary import PREFIX_KEY


def gguf_metadata(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The keys and values for a model with `vocab_size` rows; tokens are padded with unused ones up to that.

    `Tokenizer.from_gguf` of the result gives the same ids. Raises FormatError for what GGUF cannot express and for
    more tokens than rows.
    """
    if tokenizer.vocab_size > vocab_size:
        raise FormatError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model rows for {vocab_size}")
    spec = json.loads(tokenizer.to_json())
    tokens, types = _tokens(tokenizer, spec, vocab_size)
    kind = str(spec["model"].get("type", "BPE"))
    if tokenizer.kind == "byte-level" and kind == "BPE":
        made = _byte_level(tokenizer, spec)
    elif tokenizer.kind == "sentencepiece" and kind == "BPE":
        made = _sentencepiece(tokenizer, spec, tokens, types)
    elif tokenizer.kind == "sentencepiece" and kind == "Unigram":
        made = _unigram(tokenizer, spec, tokens, types)
    elif kind == "WordPiece":
        made = _wordpiece(tokenizer, spec)
        tokens = _marked(tokens, types)
    else:
        raise FormatError(f"GGUF knows no tokenizer like this ({tokenizer.kind} {kind})")
    if len(set(tokens)) != len(tokens):
        raise FormatError("the tokenizer has the same token twice")
    made |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": np.array(types, np.int32)}
    return made | _special(tokenizer, bert=kind == "WordPiece")


def _tokens(tokenizer: Tokenizer, spec: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    vocab = spec["model"]["vocab"]
    known = dict(enumerate(p[0] for p in vocab)) if isinstance(vocab, list) else {i: t for t, i in vocab.items()}
    fallback = bool(spec["model"].get("byte_fallback"))
    types = [1 if i in known else UNUSED for i in range(size)]
    for added in spec.get("added_tokens") or ():
        known[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added.get("special") else USER
    tokens = [known.get(i, f"[PAD{i}]") for i in range(size)]
    for i, token in enumerate(tokens):
        if fallback and types[i] == 1 and len(token) == 6 and token.startswith("<0x"):
            types[i] = BYTE
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = UNKNOWN
    return tokens, types


def _special(tokenizer: Tokenizer, *, bert: bool) -> dict[str, Any]:
    head, tail = tokenizer.around.head, tokenizer.around.tail
    stop = [i for i in tokenizer.stop_ids if i != tokenizer.eos_id]
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "eot": stop[0] if stop else None,
        "eom": stop[1] if len(stop) > 1 else None,
        "unknown": tokenizer.unk_id,
        "padding": tokenizer.pad_id,
        "mask": tokenizer.mask_id,
    }
    out: dict[str, Any] = {}
    if bert:
        ids |= {"cls": head[0] if head else None, "seperator": tail[0] if tail else None}  # the format's spelling
        out["tokenizer.ggml.token_type_count"] = 2
    else:
        out["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
        out["tokenizer.ggml.add_eos_token"] = bool(tail) and tail[-1] == tokenizer.eos_id
    return out | {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items() if id is not None}


# --- Kinds --------------------------------------------------------------------------------------------------------


def _byte_level(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(tokenizer),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs(spec["model"]["merges"])],
    }


def _pre_name(tokenizer: Tokenizer) -> str:
    normal = [step["type"] for step in steps_of(tokenizer.parts["normalizer"])]
    wanted = _plain(steps_of(tokenizer.parts["pre_tokenizer"]))
    whole_words = bool(tokenizer.model.get("ignore_merges"))
    for name, cut in specs.CUTS.items():
        same = _plain(cut.steps) == wanted and cut.whole_words == whole_words
        if same and normal == (["NFC"] if cut.nfc else []):
            return name
    known = ", ".join(dict.fromkeys(next(n for n, c in specs.CUTS.items() if c is cut) for cut in specs.CUTS.values()))
    raise FormatError("GGUF has no name for how this tokenizer cuts words", cure=f"it has names for: {known}")


def _plain(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Steps of a pre-tokenizer, the same for the same cuts however they are written."""
    out: list[tuple[str, ...]] = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel":
            out += [("split", specs.GPT2_WORDS)] if step.get("use_regex", True) else []
            out.append(("bytes", "space" if step.get("add_prefix_space") else ""))
        elif kind == "Digits":
            out.append(("split", r"\p{N}") if step.get("individual_digits") else ("split", r"\p{N}+"))
        elif kind == "Split" and (step.get("behavior"), bool(step.get("invert"))) in _ISOLATED:
            pattern = step["pattern"]
            out.append(("split", pattern["Regex"]) if "Regex" in pattern else ("text", pattern["String"]))
        else:
            out.append(("other", json.dumps(step, sort_keys=True)))
    return out


_ISOLATED = {("Isolated", False), ("Removed", True)}  # the same where the pattern matches everything


def _sentencepiece(
    tokenizer: Tokenizer, spec: Mapping[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """Scores: the merges that come first score best. Where scores alone do not say the merges (SentencePiece's own
    do), the merges are written too, and llama.cpp, which knows the scores only, may cut some words otherwise."""
    merges = pairs(spec["model"]["merges"])
    order: dict[str, int] = {}
    for a, b in merges:
        order.setdefault(a + b, len(order))
    scores = [-float(order.get(token, len(order))) for token in tokens]
    out = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        **_spaces(tokenizer, tokens, types, squeezes=False),
    }
    ranks = [order[a + b] for a, b in merges]
    if ranks != sorted(ranks) or set(specs.merges_of(tokens, types, scores)) != set(merges):
        out["tokenizer.ggml.merges"] = [f"{a} {b}" for a, b in merges]
        events.emit("tokenizer", "the merges are not those of SentencePiece: llama.cpp may cut some words otherwise")
    return out


def _unigram(tokenizer: Tokenizer, spec: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    known = [float(score) for _, score in spec["model"]["vocab"]]
    scores = known + [0.0] * (len(tokens) - len(known))
    if any(float(np.float32(score)) != score for score in known):
        events.emit("tokenizer", "GGUF rounds these scores to 32 bits: of two equally good cuts the other may win")
    if BYTE in types:
        events.emit("tokenizer", "llama.cpp knows no byte fallback for Unigram: what it cannot spell is unknown there")
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        **_spaces(tokenizer, tokens, types, squeezes=True),
    }


def _spaces(tokenizer: Tokenizer, tokens: list[str], types: list[int], *, squeezes: bool) -> dict[str, Any]:
    found = _read_spaces(tokenizer)
    cuts = any(s.get("split", True) for s in steps_of(tokenizer.parts["pre_tokenizer"]))
    if cuts and any(SPACE in token[1:] for token, kind in zip(tokens, types, strict=True) if kind == 1):
        raise FormatError("tokens of several words in a tokenizer that cuts at spaces: GGUF has no word for it")
    if (found.squeeze or found.charsmap) and not squeezes:
        raise FormatError("GGUF has no word for how this tokenizer normalises text")
    out: dict[str, Any] = {"tokenizer.ggml.add_space_prefix": found.prefix != ""}
    if squeezes:
        out["tokenizer.ggml.remove_extra_whitespaces"] = found.squeeze
    if found.charsmap:
        out["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(found.charsmap, np.uint8)
    if found.prefix in ("missing", "first") and not (found.squeeze and found.prefix == "missing"):
        out[PREFIX_KEY] = found.prefix
    return out


def _read_spaces(tokenizer: Tokenizer) -> Spaces:
    """What normaliser and pre-tokenizer do to spaces, in SentencePiece's words."""
    squeeze, charsmap = False, b""
    for step in steps_of(tokenizer.parts["normalizer"]):
        kind, pattern = step.get("type"), step.get("pattern") or {}
        if kind == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Strip" or pattern.get("Regex") in (r"\A +| +\z", " {2,}"):
            squeeze = True
        elif kind != "Prepend" and (kind, pattern.get("String"), step.get("content")) != ("Replace", " ", SPACE):
            raise FormatError(f"GGUF has no word for this tokenizer's normaliser {kind}")
    for step in steps_of(tokenizer.parts["pre_tokenizer"]):
        kind = step.get("type")
        if kind == "WhitespaceSplit" and charsmap:  # which has made spaces of all other blanks
            squeeze = True
        elif kind != "Metaspace":
            raise FormatError(f"GGUF has no word for this tokenizer's pre-tokenizer {kind}")
    return Spaces(tokenizer.prefix, squeeze, charsmap)


def _wordpiece(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
    normal, pre = (steps_of(tokenizer.parts[key]) for key in ("normalizer", "pre_tokenizer"))
    bert = [(s.get("type"), s.get("clean_text", True), s.get("handle_chinese_chars", True)) for s in normal]
    if bert != [("BertNormalizer", True, True)] or [s.get("type") for s in pre] != ["BertPreTokenizer"]:
        raise FormatError("GGUF has no word for how this WordPiece tokenizer prepares text")
    if spec["model"].get("continuing_subword_prefix") != "##":
        raise FormatError("GGUF knows WordPiece with ## only")
    lowercase, accents = normal[0].get("lowercase", True), normal[0].get("strip_accents")
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if accents is None else accents,
    }


def _marked(tokens: list[str], types: list[int]) -> list[str]:
    """BERT marks what continues a word (##), GGUF what begins one (▁); [CLS] and the like stay."""
    out = []
    for token, kind in zip(tokens, types, strict=True):
        if token.startswith("[") and token.endswith("]") and len(token) > 1:
            out.append(token)
        elif token.startswith("##") and len(token) > 2 and kind == 1:
            out.append(token[2:])
        else:
            out.append(SPACE + token)
    return out
