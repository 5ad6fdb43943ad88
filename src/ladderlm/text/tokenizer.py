"""Text to ids and back, around the Rust `tokenizers` library.

`tokenizer.json` is the format; a GGUF vocabulary is turned into one in memory. Two encoders are kept: the full one,
and a plain one that knows no control tokens, so that a spelled "<|im_end|>" can never become that token.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ladderlm.errors import FormatError, NotFound
from ladderlm.text.vocabulary import byte_alphabet, json_from_gguf

# Tokens that end a turn or a document, by the names models give them (the list llama.cpp also stops at).
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "</s>", "<eos>",
)  # fmt: skip
_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
_DOCUMENT = "<|endoftext|>"
_MARKUP = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a tokenizer file alone does not say. `stop` are further ids that end a turn, beside `eos`."""

    bos: int | None = None
    eos: int | None = None
    stop: tuple[int, ...] = ()
    add_bos: bool = False
    document_start: int | None = None


class Tokenizer:
    """A tokenizer and its special tokens. Safe to share between threads."""

    def __init__(self, text: str, special: SpecialTokens | None = None, *, where: str = "tokenizer.json") -> None:
        self._json = text
        try:
            spec = json.loads(text)
            self._full = _encoder(spec)
            self._size = self._full.get_vocab_size(with_added_tokens=True)
            self.control = _control_tokens(spec)
            self._plain = _without(self._full, spec, self.control)
        except Exception as error:  # the Rust library raises bare Exception
            raise FormatError(f"not a tokenizer: {str(error)[:200]}", where=where) from None
        self.byte_level = '"ByteLevel"' in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
        self._dummy_space = not self.byte_level and '"Strip"' in json.dumps(spec.get("decoder"))
        self._set_special(special or self._guess(text if spec.get("post_processor") else None))

    def _set_special(self, special: SpecialTokens) -> None:
        self.bos_id, self.eos_id, self.add_bos = special.bos, special.eos, special.add_bos
        known = [self.control[name] for name in _ENDS if name in self.control]
        ends = [i for i in (special.eos, *special.stop, *known) if i is not None]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self.document_start_id: int | None = special.document_start
        if self.document_start_id is None:
            self.document_start_id = special.bos if special.add_bos else self.control.get(_DOCUMENT)

    def with_special(self, special: SpecialTokens) -> Tokenizer:
        """The same tokenizer with other special tokens."""
        other = copy.copy(self)
        other._set_special(special)
        return other

    @classmethod
    def from_file(cls, path: str | Path, special: SpecialTokens | None = None) -> Tokenizer:
        """From a tokenizer.json. NotFound or FormatError otherwise."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound("no such file", where=str(path)) from None
        except UnicodeDecodeError:
            raise FormatError("not UTF-8", where=str(path)) from None
        return cls(text, special, where=str(path))

    @classmethod
    def from_json(cls, text: str, special: SpecialTokens | None = None) -> Tokenizer:
        return cls(text, special)

    @classmethod
    def from_gguf(cls, meta: Mapping[str, Any]) -> Tokenizer:
        """From the tokenizer.ggml.* metadata of a GGUF file."""
        text = json_from_gguf(meta)
        size = len(meta["tokenizer.ggml.tokens"])
        ids: dict[str, int | None] = {}
        for name in ("bos", "eos", "eot", "eom"):
            value = meta.get(f"tokenizer.ggml.{name}_token_id")
            ids[name] = value if isinstance(value, int) and 0 <= value < size else None
        sentencepiece = meta["tokenizer.ggml.model"] == "llama"
        add_bos = bool(meta.get("tokenizer.ggml.add_bos_token", sentencepiece)) and ids["bos"] is not None
        stop = tuple(i for i in (ids["eot"], ids["eom"]) if i is not None)
        return cls(text, SpecialTokens(ids["bos"], ids["eos"], stop, add_bos), where="GGUF vocabulary")

    def _guess(self, with_post: str | None) -> SpecialTokens:
        """Special tokens by their usual names; add_bos where the file's own post-processor adds one."""
        bos = next((self.control[n] for n in _STARTS if n in self.control), None)
        eos = next((self.control[n] for n in _ENDS if n in self.control), None)
        add_bos = False
        if with_post:
            added: list[int] = tokenizers.Tokenizer.from_str(with_post).encode("").ids
            add_bos = bool(added) and added[0] in self.control.values() and added[0] != eos
            bos = added[0] if add_bos else bos
        return SpecialTokens(bos, eos, (), add_bos)

    # --- text to ids ----------------------------------------------------------------------------------------------

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, without BOS. A spelled control token becomes one only if `special`."""
        encoder = self._full if special else self._plain
        ids: list[int] = encoder.encode(_clean(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        found = self._plain.encode_batch_fast([_clean(t) for t in texts], add_special_tokens=False)
        return [e.ids for e in found]

    def encode_spans(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, the characters (start, end) it came from."""
        encoder = self._full if special else self._plain
        found = encoder.encode(_clean(text), add_special_tokens=False)
        return found.ids, found.offsets

    # --- ids to text ----------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`."""
        hidden = frozenset() if special else self._control_ids
        data = b"".join(self.token_bytes(i) for i in ids if i not in hidden)
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._dummy_space else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, b"" for an id beyond the vocabulary."""
        table = self._bytes
        return table[id] if 0 <= id < len(table) else b""

    def token_text(self, id: int) -> str:
        """One token for people: its text, or its bytes as \\xNN where it is a part of a character."""
        data = self.token_bytes(id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"\\x{b:02x}" for b in data)

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.control.values())

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        added = self._full.get_added_tokens_decoder()
        table = [b""] * self._size
        alphabet = {c: b for b, c in enumerate(byte_alphabet())}
        for token, id in self._full.get_vocab(with_added_tokens=True).items():
            if id >= len(table):
                table.extend([b""] * (id + 1 - len(table)))
            if id in added:
                table[id] = token.encode()
            elif self.byte_level:
                table[id] = bytes(alphabet[c] for c in token) if alphabet.keys() >= set(token) else token.encode()
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[id] = bytes([int(token[3:5], 16)])
            else:
                table[id] = token.replace("▁", " ").encode()
        return table

    # --- the rest -------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included (a model may have more rows, as padding)."""
        return len(self._bytes)

    @property
    def special(self) -> SpecialTokens:
        stop = tuple(i for i in self.stop_ids if i != self.eos_id)
        return SpecialTokens(self.bos_id, self.eos_id, stop, self.add_bos, self.document_start_id)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, None if there is none."""
        found: int | None = self._full.token_to_id(token)
        return found

    def to_json(self) -> str:
        """The tokenizer.json text."""
        return self._json


def _clean(text: str) -> str:
    """Lone surrogates (undecodable bytes that Python let through) cannot be encoded: they become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _control_tokens(spec: Mapping[str, Any]) -> dict[str, int]:
    """Added tokens that text must not be able to spell: the special ones, and markup such as <tool_call>."""
    return {
        t["content"]: t["id"]
        for t in spec.get("added_tokens") or ()
        if t["content"] and (t.get("special") or _MARKUP.fullmatch(t["content"]))
    }


def _encoder(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The encoder of a tokenizer.json that adds nothing of its own."""
    bare = {**spec, "post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(bare))


def _without(full: tokenizers.Tokenizer, spec: Mapping[str, Any], control: Mapping[str, int]) -> tokenizers.Tokenizer:
    """`full` without its control tokens. Shares the model (a second copy costs 0.2 s and 20 MB) where it can."""
    kept = [t for t in spec.get("added_tokens") or () if t["content"] not in control]
    if kept:
        return _encoder({**spec, "added_tokens": kept})
    plain = tokenizers.Tokenizer(full.model)
    plain.normalizer, plain.pre_tokenizer = full.normalizer, full.pre_tokenizer
    return plain
