"""SentencePiece's own file (`tokenizer.model`, a protobuf ModelProto), read without its library.

Source: sentencepiece_model.proto (field numbers) and the protobuf wire format (varints, length-delimited fields).

Ids are SentencePiece's own but for what the `tokenizers` library does otherwise: of equally probable Unigram cuts
SentencePiece's 32-bit sums choose another now and then; normalisation composes a letter with one mark, not with the
first of several; a Unigram vocabulary with byte pieces takes a spelled "<0x0A>" for that byte; and every text after a
user-defined token gets a dummy space.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ladderlm.errors import FormatError, NotFound
from ladderlm.text import specs
from ladderlm.text.specs import BYTE, CONTROL, UNKNOWN, USER, Spaces, Spec

_MAX_BYTES, _MAX_PIECES, _MAX_PIECE = 64 * 2**20, 2**21, 4096
_UNIGRAM, _BPE = 1, 2
Field = tuple[int, int | bytes]


@dataclass
class Pieces:
    """A vocabulary: texts, scores and types (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte)."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    model: int = _UNIGRAM
    spaces: Spaces = field(default_factory=Spaces)

    def spec(self) -> Spec:
        """The parts of a tokenizer.json. FormatError for SentencePiece's word and character models."""
        if self.model == _UNIGRAM:
            return specs.unigram(self.texts, self.types, self.scores, self.spaces)
        if self.model == _BPE:
            merges = specs.merges_of(self.texts, self.types, self.scores)
            return specs.sentencepiece_bpe(self.texts, self.types, merges, self.spaces)
        raise FormatError("a SentencePiece model of words or characters is not supported", cure="Unigram or BPE")

    def added(self) -> list[Spec]:
        wanted = (UNKNOWN, CONTROL, USER)
        known = enumerate(zip(self.texts, self.types, strict=True))
        return [specs.added(i, text, special=kind != USER) for i, (text, kind) in known if kind in wanted]


def read_sentencepiece(path: str | Path) -> Pieces:
    """NotFound when there is no such file, FormatError when it is no SentencePiece model."""
    try:
        with Path(path).open("rb") as f:
            data = f.read(_MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound("no such file", where=str(path)) from None
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("too large")
        return _model(data)
    except (ValueError, struct.error) as error:  # UnicodeDecodeError is a ValueError
        raise FormatError(f"not a SentencePiece model: {error}", where=str(path)) from None


def _model(data: bytes) -> Pieces:
    found = Pieces([], [], [])
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            _piece(value, found)
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not found.texts:
        raise ValueError("it holds no pieces")
    if len(set(found.texts)) != len(found.texts):
        raise ValueError("a piece appears twice")
    if trainer.get(24):  # treat_whitespace_as_suffix
        raise ValueError("spaces as suffixes are not supported")
    if not normalizer.get(5, 1):  # escape_whitespaces
        raise ValueError("unescaped spaces are not supported")
    found.model = int(trainer.get(3, _UNIGRAM))
    charsmap = normalizer.get(2, b"")
    prefix = "always" if normalizer.get(3, 1) else ""
    found.spaces = Spaces(prefix, bool(normalizer.get(4, 1)), charsmap if isinstance(charsmap, bytes) else b"")
    return found


def _piece(data: bytes, found: Pieces) -> None:
    fields = dict(_fields(data))
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int) and 1 <= kind <= BYTE):
        raise ValueError("an unsound piece")
    if len(found.texts) >= _MAX_PIECES or len(text) > _MAX_PIECE:
        raise ValueError("absurdly many or long pieces")
    found.texts.append(text.decode())
    found.scores.append(struct.unpack("<f", score)[0])
    found.types.append(kind)


def _fields(data: bytes) -> Iterator[Field]:
    """The (number, value) pairs of one message: varints as integers, all else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if size > len(data) - at:
            raise ValueError("it ends inside a field")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without end")
