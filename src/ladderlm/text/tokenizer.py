"""Text to ids and back, around the Rust `tokenizers` library.

`tokenizer.json` is the format; vocabularies from elsewhere (GGUF, SentencePiece, vocab.txt...) are turned into one in
memory. Ids equal those of the `tokenizers` library on the same file, for all text that spells no control token.

On purpose not as in `transformers`:
- A control token that text spells ("<|im_end|>", "</s>", also "＜/s＞" where normalisation makes it one) never becomes
  that token; only templates and post-processors emit control tokens.
- Markup such as <tool_call> counts as control, whether the file marks it special or not.
- Decoding leaves control tokens out, gives one � for each run of bytes that can form no character (as Python does),
  and takes away the one space that SentencePiece and WordPiece put in front, never the text's own.
"""

from __future__ import annotations

import base64
import copy
import functools
import itertools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import models, processors

from ladderlm.errors import FormatError
from ladderlm.text import files
from ladderlm.text.around import around
from ladderlm.text.charsmap import check_charsmap
from ladderlm.text.parts import kind_of, prefix_of, steps_of, strips, without_prefix
from ladderlm.text.specs import SPACE, byte_alphabet
from ladderlm.text.vocabulary import PREFIX_KEY, spec_from_gguf, token_id

if TYPE_CHECKING:
    import numpy as np

    from ladderlm.text.fast import FastEncoder

# Tokens that end a turn or a document, by the names models give them (the list llama.cpp also stops at).
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "</s>", "<eos>",
)  # fmt: skip
_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
_DOCUMENT = "<|endoftext|>"
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>")
_MASKS = ("[MASK]", "<mask>")
_MARKUP = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
_BLANK = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_CLEAN = {" " + mark: mark for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")}  # BERT's own clean-up
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_BPE_SETTINGS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges",
)  # fmt: skip
_MAX_SIZE = 2**24  # tokens
_MANY = 2**20  # characters: from here on our own encoder is worth the half second it takes to load
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a tokenizer file alone does not say. `stop` are further ids that end a turn, beside `eos`."""

    bos: int | None = None
    eos: int | None = None
    stop: tuple[int, ...] = ()
    add_bos: bool = False
    document_start: int | None = None


class Tokenizer:
    """A tokenizer and its special tokens. Safe to share between threads.

    `kind` is "byte-level", "sentencepiece" (BPE or Unigram over ▁ for spaces), "wordpiece", or "plain" for others.
    `control` holds the tokens that text cannot spell: name -> id. `around` is what surrounds a text or a pair.
    `vocab_size` counts added tokens too (a model may have more rows, as padding). `parts` and `model` are the
    settings of the tokenizer.json, without its vocabulary. `prefix` is the space put in front (see specs.Spaces).
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        source: Callable[[], str],
        special: SpecialTokens | None = None,
        *,
        where: str = "tokenizer.json",
    ) -> None:
        """`spec` is a parsed tokenizer.json, `source` gives its text. See the from_... methods."""
        self._source = source
        try:
            self._full = build(spec)
            self._added = {int(t["id"]): t for t in spec.get("added_tokens") or ()}
            self.control = _control_tokens(self._added.values())
            self.around = around(spec.get("post_processor"))
            self.parts = {k: spec.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")}
            self.model = {k: v for k, v in spec["model"].items() if k not in ("vocab", "merges")}
            vocab = spec["model"]["vocab"]
            last = max(vocab.values(), default=-1) if isinstance(vocab, Mapping) else len(vocab) - 1
            self.vocab_size: int = max([int(last), *self._added]) + 1
            if self.vocab_size > _MAX_SIZE:
                raise ValueError(f"an id of {self.vocab_size - 1}")
        except FormatError as error:
            raise FormatError(str(error), where=where) from None
        except BaseException as error:  # the Rust library raises bare Exception, and panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise FormatError(f"not a tokenizer: {str(error)[:200]}", where=where) from None
        self.kind = kind_of(self.parts, str(self.model.get("type", "BPE")))
        self.byte_level = self.kind == "byte-level"
        self.prefix = prefix_of(self.parts)
        self.dummy_space = self.kind == "wordpiece" or (not self.byte_level and strips(self.parts["decoder"]))
        self._encoders: dict[tuple[bool, bool], tokenizers.Tokenizer] = {}
        self._set_special(special or self._guess())

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
        return cls._of(files.read_text(Path(path)), special, str(path))

    @classmethod
    def from_folder(cls, path: str | Path, special: SpecialTokens | None = None) -> Tokenizer:
        """From a folder: tokenizer.json, else tokenizer.model (SentencePiece), vocab.json with merges.txt, vocab.txt.

        NotFound when it holds none of them, FormatError when what it holds is not sound.
        """
        text, source = files.folder_json(Path(path))
        return cls._of(text, special, str(source))

    @classmethod
    def from_json(cls, text: str, special: SpecialTokens | None = None) -> Tokenizer:
        return cls._of(text, special, "tokenizer.json")

    @classmethod
    def _of(cls, text: str, special: SpecialTokens | None, where: str) -> Tokenizer:
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"not a tokenizer: {error}", where=where) from None
        return cls(spec if isinstance(spec, dict) else {}, lambda: text, special, where=where)

    @classmethod
    def from_gguf(cls, meta: Mapping[str, Any]) -> Tokenizer:
        """From the tokenizer.ggml.* metadata of a GGUF file."""
        spec = spec_from_gguf(meta)
        bos, eos, eot, eom = (token_id(meta, name) for name in ("bos", "eos", "eot", "eom"))
        kind = meta["tokenizer.ggml.model"]
        special = None  # WordPiece has it all in what it puts around
        if kind != "bert":
            add_bos = bool(meta.get("tokenizer.ggml.add_bos_token", kind == "llama")) and bos is not None
            special = SpecialTokens(bos, eos, tuple(i for i in (eot, eom) if i is not None), add_bos)
        vocabulary = {key: value for key, value in meta.items() if ".ggml." in key or key == PREFIX_KEY}
        return cls(spec, lambda: json.dumps(spec_from_gguf(vocabulary), ensure_ascii=False), special, where="GGUF")

    def _guess(self) -> SpecialTokens:
        """Special tokens by their usual names; add_bos where the file's own post-processor adds one."""
        bos = next((self.control[n] for n in _STARTS if n in self.control), None)
        eos = next((self.control[n] for n in _ENDS if n in self.control), None)
        head = self.around.head
        add_bos = bool(head) and head[0] in self._control_ids and head[0] != eos
        return SpecialTokens(head[0] if add_bos else bos, eos, (), add_bos)

    # --- text to ids ----------------------------------------------------------------------------------------------

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        """Ids of `text`, without BOS. A spelled control token becomes one only if `special`.

        With `continues` the text goes on where other text ended: SentencePiece puts no space of its own in front.
        """
        if special:
            found: list[int] = self._full.encode(_clean(text), add_special_tokens=False).ids
            return found
        return self._encode(text, continues)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text: by our own encoder when it is much text, else on all cores."""
        fast = self._fast_for(texts)
        if fast is not None:
            ids, ends = fast.encode([_clean(t) for t in texts])
            flat, starts = ids.tolist(), [0, *ends.tolist()]
            return [flat[i:j] for i, j in itertools.pairwise(starts)]
        found = self._encoder(False, False).encode_batch_fast([_clean(t) for t in texts], add_special_tokens=False)
        rows: list[list[int]] = [e.ids for e in found]
        return [self.encode(t) if self._forged(t, ids) else ids for ids, t in zip(rows, texts, strict=True)]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode` of each text as arrays: (all ids end to end, uint32; where each text's ids end, int64)."""
        import numpy as np

        fast = self._fast_for(texts)
        if fast is not None:
            return fast.encode([_clean(t) for t in texts])
        rows = self.encode_batch(texts)
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return np.fromiter(itertools.chain.from_iterable(rows), np.uint32, int(ends[-1]) if rows else 0), ends

    def _fast_for(self, texts: Sequence[str]) -> FastEncoder | None:
        """Our own encoder, if it is loaded or the texts are worth loading it, and knows this kind of tokenizer."""
        if "_fast" not in self.__dict__ and (not self.byte_level or sum(map(len, texts)) < _MANY):
            return None
        return self._fast

    @functools.cached_property
    def _fast(self) -> FastEncoder | None:
        from ladderlm.text.fast import fast_encoder

        return fast_encoder(json.loads(self._source()), self.control, self._encoder(False, False))

    def encode_pair(
        self, text: str, other: str | None = None, *, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or of two, with what the tokenizer puts around them ([CLS] A [SEP] B [SEP],
        A </s>): what an encoder reads. The longer text is cut first to fit `max_length`."""
        second = None if other is None else self.encode(other)
        return self.around.join(self.encode(text), second, max_length)

    def encode_pieces(self, pieces: Iterable[tuple[str, int | None]]) -> list[tuple[list[int], list[Span]]]:
        """Ids and characters (start, end in the piece) of the pieces of one text, in order.

        A piece is (text, None), plain text whatever it spells, or (text, id), a control token. No token reaches over
        the edge of a piece. Blanks that a control token eats beside it (Phi-3's do) get no token.
        """
        parts = list(pieces)
        out: list[tuple[list[int], list[Span]]] = []
        fresh, first = True, True  # at the start of a run of text; at the start of everything
        for i, (text, id) in enumerate(parts):
            if id is not None:
                out.append(([id], [(0, len(text))]))
                fresh, first = True, False
                continue
            before, after = (parts[j][1] if 0 <= j < len(parts) else None for j in (i - 1, i + 1))
            kept, skipped = text, 0
            if before is not None and self._added[before].get("rstrip"):
                kept = kept.lstrip(_BLANK)
                skipped = len(text) - len(kept)
            if after is not None and self._added[after].get("lstrip"):
                kept = kept.rstrip(_BLANK)
            ids, spans = self._encode(kept, not (first if self.prefix == "first" else fresh))
            out.append((ids, [(a + skipped, b + skipped) for a, b in spans] if skipped else spans))
            if kept:
                fresh = first = False
        return out

    def _encode(self, text: str, continues: bool) -> tuple[list[int], list[Span]]:
        text = _clean(text)
        found = self._encoder(continues, False).encode(text, add_special_tokens=False)
        if self._forged(text, found.ids):
            found = self._encoder(continues, True).encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def _forged(self, text: str, ids: list[int]) -> bool:
        """Whether the model's own vocabulary made a control token of what the text spells."""
        if self._control_ids.isdisjoint(ids):
            return False
        found = self._control_ids.intersection(ids)
        if found != {self.unk_id}:
            return True
        normalizer = self._full.normalizer  # is it unknown, or does it say "<unk>"?
        text = normalizer.normalize_str(text) if normalizer else text
        return any(name in text for name, id in self.control.items() if id == self.unk_id)

    def _encoder(self, continues: bool, hidden: bool) -> tokenizers.Tokenizer:
        """An encoder without control tokens. `hidden`: they are out of reach in the model's own vocabulary too."""
        key = (continues and self.prefix != "", hidden)
        if key not in self._encoders:  # two threads may build the same one: no harm
            self._encoders[key] = self._build(*key)
        return self._encoders[key]

    def _build(self, continues: bool, hidden: bool) -> tokenizers.Tokenizer:
        kept = [t for id, t in self._added.items() if t["content"] not in self.control]
        base = self._hidden if hidden else self._full
        if any(base.model.token_to_id(t["content"]) != t["id"] for t in kept):
            made = build({**json.loads(self._source()), "added_tokens": kept})
        else:
            made = tokenizers.Tokenizer(base.model)  # shares the model: a second copy costs 0.2 s and 20 MB
            made.add_tokens([_added_token(t) for t in kept])
        parts = {k: without_prefix(v) if continues else v for k, v in self.parts.items()}
        shell = build({**parts, "model": {"type": "BPE", "vocab": {}, "merges": []}})
        made.normalizer, made.pre_tokenizer = shell.normalizer, shell.pre_tokenizer
        return made

    @functools.cached_property
    def _hidden(self) -> tokenizers.Tokenizer:
        """The model with names for its control tokens that no text can hit upon."""
        spec = json.loads(self._source())
        model, secret = spec["model"], secrets.token_hex(16)
        names = {name: f"{secret}{id}" for name, id in self.control.items()}
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
            unknown = model.get("unk_token")
            model["unk_token"] = names.get(unknown, unknown)
        else:
            model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
        if model.get("merges"):
            model["merges"] = [(a, b) for a, b in pairs(model["merges"]) if not names.keys() & {a, b, a + b}]
        return build({**spec, "added_tokens": []})

    # --- ids to text ----------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`."""
        hidden = frozenset() if special else self._control_ids
        data = b"".join(self.token_bytes(i) for i in ids if i not in hidden)
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.dummy_space else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, b"" for an id beyond the vocabulary."""
        table = self._bytes
        return table[id] if 0 <= id < len(table) else b""

    def token_text(self, id: int) -> str:
        """One token for people: its text, or its bytes as \\xNN where it is a part of a character."""
        if id in self._added:  # asked for as a model is opened, when the table of all would take a tenth of a second
            return str(self._added[id]["content"])
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
        table = [b""] * self.vocab_size
        spell = self._spelling()
        for token, id in self._full.get_vocab(with_added_tokens=True).items():
            if id < len(table):  # a damaged file can name one token twice, by different ids
                table[id] = token.encode() if id in self._added else spell(token)
        return table

    def _spelling(self) -> Callable[[str], bytes]:
        """From a token as the vocabulary writes it to the bytes it stands for."""
        if self.byte_level:
            table = dict.fromkeys(range(256), 0xFFFF)  # what is no stand-in for a byte cannot be encoded below
            table |= {ord(c): b for b, c in enumerate(byte_alphabet())}

            def spell(token: str) -> bytes:
                try:
                    return token.translate(table).encode("latin-1")
                except UnicodeEncodeError:
                    return token.encode()

            return spell
        inside = self.model.get("continuing_subword_prefix") or ""
        if self.kind == "wordpiece":
            return lambda token: (
                token[len(inside) :] if inside and token.startswith(inside) else _CLEAN.get(" " + token, " " + token)
            ).encode()
        return lambda token: (
            bytes([int(token[3:5], 16)]) if _BYTE.fullmatch(token) else token.replace(SPACE, " ").encode()
        )

    # --- the rest -------------------------------------------------------------------------------------------------

    @property
    def special(self) -> SpecialTokens:
        stop = tuple(i for i in self.stop_ids if i != self.eos_id)
        return SpecialTokens(self.bos_id, self.eos_id, stop, self.add_bos, self.document_start_id)

    @property
    def pad_id(self) -> int | None:
        """The id of padding, by its usual names."""
        return next((self.control[n] for n in _PADS if n in self.control), None)

    @property
    def mask_id(self) -> int | None:
        """The id that hides a token from a masked language model."""
        return next((self.control[n] for n in _MASKS if n in self.control), None)

    @property
    def unk_id(self) -> int | None:
        """The id of what the vocabulary cannot spell; None for one that can spell all."""
        if (place := self.model.get("unk_id")) is not None:
            return int(place)
        name = self.model.get("unk_token")
        return self.id_of(name) if isinstance(name, str) else None

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, None if there is none."""
        found: int | None = self._full.token_to_id(token)
        return found

    def to_json(self) -> str:
        """The tokenizer.json text."""
        return self._source()


def _clean(text: str) -> str:
    """Lone surrogates (undecodable bytes that Python let through) cannot be encoded: they become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _control_tokens(added: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Added tokens that text must not be able to spell: the special ones, and markup such as <tool_call>."""
    return {
        t["content"]: t["id"]
        for t in added
        if t["content"] and (t.get("special") or _MARKUP.fullmatch(t["content"]))
    }  # fmt: skip


# --- Making encoders ----------------------------------------------------------------------------------------------


def build(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The encoder of a tokenizer.json that cuts, pads and surrounds nothing. Any Exception when it is not sound."""
    model = spec["model"]
    for step in steps_of(spec.get("normalizer")):
        if step.get("type") == "Precompiled":
            check_charsmap(base64.b64decode(step["precompiled_charsmap"]))
    if model.get("type", "BPE") != "BPE" or "vocab" not in model:
        return _bare(tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **spec})))
    small = {**spec, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    made = _bare(tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **small})))
    settings = {k: model[k] for k in _BPE_SETTINGS if model.get(k) is not None}  # from objects: twice as fast
    made.model = models.BPE(vocab=model["vocab"], merges=pairs(model.get("merges") or ()), **settings)
    added = sorted(spec.get("added_tokens") or (), key=lambda t: t["id"])
    made.add_tokens([_added_token(t) for t in added])
    if any(made.token_to_id(t["content"]) != t["id"] for t in added):  # ids with gaps: as the library reads them
        return _bare(tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", **spec})))
    return made


def pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as "left right"."""
    return [m if type(m) is tuple else tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]


def _added_token(entry: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = {k: bool(entry.get(k)) for k in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    return tokenizers.AddedToken(entry["content"], **flags)


def _bare(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    made.no_truncation()
    made.no_padding()
    made.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return made
