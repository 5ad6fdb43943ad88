"""A GGUF vocabulary as a tokenizer.json: byte-level BPE ("gpt2"), SentencePiece BPE ("llama" with scores, "gemma4" with
merges), SentencePiece Unigram ("t5") and WordPiece ("bert")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ladderlm.errors import FormatError, nearest
from ladderlm.text import specs
from ladderlm.text.specs import CONTROL, SPACE, UNKNOWN, UNUSED, USER, Bert, Spaces, Spec

_KIND = "tokenizer.ggml."
_MAX_PIECE = 2**16  # characters of one token
PREFIX_KEY = "ladderlm.tokenizer.prefix"  # how spaces are put in front, where GGUF itself has no word for it


def spec_from_gguf(meta: Mapping[str, Any]) -> Spec:
    """The tokenizer.json for the tokenizer.ggml.* keys. FormatError when they are missing or unknown."""
    model, tokens = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise FormatError("the GGUF file holds no vocabulary")
    if max(map(len, tokens)) > _MAX_PIECE:
        raise FormatError("a token of the GGUF vocabulary is absurdly long")
    types = meta.get("tokenizer.ggml.token_type")
    types = [1] * len(tokens) if types is None else [int(t) for t in types]
    if len(types) != len(tokens):
        raise FormatError("the GGUF vocabulary and its token types differ in length")
    if (unknown := token_id(meta, "unknown")) is not None and model in ("llama", "gemma4", "t5"):
        types = [kind if kind != UNKNOWN else UNUSED for kind in types]  # old files mark padding as unknown too
        types[unknown] = UNKNOWN
    special: tuple[int, ...] = (UNKNOWN, CONTROL, USER)
    if model == "gpt2":
        spec, special = _byte_level(meta, tokens), (CONTROL, USER)
    elif model in ("llama", "gemma4"):
        spec = _sentencepiece(meta, tokens, types)
    elif model == "t5":
        special = (*special, UNUSED)  # else text could spell them
        spec = specs.unigram(tokens, types, _scores(meta, len(tokens)), _spaces(meta, tokens))
    elif model == "bert":
        spec = _wordpiece(meta, tokens)
        tokens = list(spec["model"]["vocab"])
    else:
        raise FormatError(f"the GGUF tokenizer {model!r} is not supported", cure="supported: gpt2, llama, t5, bert")
    found = [
        specs.added(i, token, special=kind != USER)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token and kind in special
    ]
    post = _post(meta, tokens, bert=model == "bert", bos=model == "llama", eos=model == "t5")
    return specs.whole({**spec, "post_processor": post}, found)


def token_id(meta: Mapping[str, Any], name: str) -> int | None:
    """The id under tokenizer.ggml.NAME_token_id, None where there is none (or one beyond the vocabulary)."""
    value = meta.get(f"{_KIND}{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < len(meta["tokenizer.ggml.tokens"]) else None


def _post(meta: Mapping[str, Any], tokens: Sequence[str], *, bert: bool, bos: bool, eos: bool) -> Spec | None:
    """What is put around text. `bos`, `eos`: whether they are when the file does not say."""
    first, last = token_id(meta, "bos"), token_id(meta, "eos")
    if bert:
        first, last, bos, eos = token_id(meta, "cls"), token_id(meta, "seperator"), True, True  # their spelling
        if first is None:  # older files call [CLS] the BOS, or leave it at its usual place
            first = token_id(meta, "bos") if token_id(meta, "bos") is not None else _find(tokens, "[CLS]")
        last = last if last is not None else _find(tokens, "[SEP]")
    else:
        bos = bool(meta.get("tokenizer.ggml.add_bos_token", bos))
        eos = bool(meta.get("tokenizer.ggml.add_eos_token", eos))
    head = [(tokens[first], first)] if bos and first is not None else []
    tail = [(tokens[last], last)] if eos and last is not None else []
    return specs.template(head, tail, types=bert)


def _find(tokens: Sequence[str], name: str) -> int | None:
    return tokens.index(name) if name in tokens else None


def _byte_level(meta: Mapping[str, Any], tokens: Sequence[str]) -> Spec:
    pre = meta.get("tokenizer.ggml.pre", "default")
    if pre not in specs.CUTS:
        raise FormatError(f"the GGUF pre-tokenizer {pre!r} is not supported", cure=nearest(str(pre), specs.CUTS))
    return specs.byte_level({token: i for i, token in enumerate(tokens)}, _merges(meta), specs.CUTS[pre])


def _merges(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each "left right"; the left one may itself begin with a space."""
    merges = meta.get("tokenizer.ggml.merges")
    found = []
    if not isinstance(merges, list):
        raise FormatError("the GGUF vocabulary has no merges")
    for merge in merges:
        cut = merge.find(" ", 1)
        found.append((merge[:cut], merge[cut + 1 :]))
        if cut < 0 or not found[-1][1]:
            raise FormatError(f"{merge[:40]!r} in the GGUF vocabulary is no merge")
    return found


def _scores(meta: Mapping[str, Any], size: int) -> list[float]:
    scores = meta.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != size:
        raise FormatError("the GGUF vocabulary has no sound scores")
    return [float(s) for s in scores]


def _spaces(meta: Mapping[str, Any], tokens: Sequence[str]) -> Spaces:
    prefix = "always" if meta.get("tokenizer.ggml.add_space_prefix", True) else ""
    if meta.get(PREFIX_KEY) in ("missing", "first"):
        prefix = str(meta[PREFIX_KEY])
    charsmap = meta.get("tokenizer.ggml.precompiled_charsmap")
    squeeze = bool(meta.get("tokenizer.ggml.remove_extra_whitespaces", False))
    data = b"" if charsmap is None else bytes(x & 0xFF for x in map(int, charsmap))
    return Spaces(prefix, squeeze, data)


def _sentencepiece(meta: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Spec:
    if "tokenizer.ggml.merges" in meta:
        return specs.sentencepiece_bpe(tokens, types, _merges(meta), _spaces(meta, tokens))
    merges = specs.merges_of(tokens, types, _scores(meta, len(tokens)))
    return specs.sentencepiece_bpe(tokens, types, merges, _spaces(meta, tokens))


def _wordpiece(meta: Mapping[str, Any], tokens: Sequence[str]) -> Spec:
    """GGUF marks the beginning of a word (▁) where BERT marks what continues one (##)."""
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token.startswith(SPACE) and len(token) > 1:
            token = token[1:]
        elif not (token.startswith("[") and token.endswith("]") and len(token) > 1):
            token = "##" + token
        if vocab.setdefault(token, i) != i:
            raise FormatError(f"the GGUF vocabulary holds {token!r} twice")
    unknown = token_id(meta, "unknown")
    lowercase = bool(meta.get("tokenizer.ggml.normalizer.lowercase", True))
    accents = meta.get("tokenizer.ggml.normalizer.strip_accents")
    bert = Bert(lowercase, accents if isinstance(accents, bool) else None)
    names = list(vocab)
    return specs.wordpiece(vocab, bert, "[UNK]" if unknown is None else names[unknown])
