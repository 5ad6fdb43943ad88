"""In which encoding a text file is: by its mark, UTF-8 where it is valid, else by what the bytes look like.

Windows-1252 stands for Latin-1 as well, as browsers take it (WHATWG Encoding Standard). Other alphabets are told by
resiliparse's detector. Where that is not installed, texts mostly of plain letters are taken for Western European, and
others left out rather than garbled.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, Any

from ladderlm.data.archives import Refused

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
UTF8 = ("utf-8", "utf-8-sig")
_LOOKED_AT = 1 << 16
_FEW = 20  # bytes above 127 that tell nothing about an alphabet
_WESTERN = "cp1252"
_LATIN = re.compile(r"iso8859[-_]?\d|latin|cp125[0247]|mac|ascii")
_HIGH = re.compile(rb"[\x80-\xff]")
_BEYOND = re.compile("[^\x00-\x7f]")
_LETTER = re.compile(rb"[A-Za-z]")
_NO_TEXT = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")


def detect(start: bytes, whole: bool) -> str:
    """The encoding of a text by its beginning (all of it, if `whole`). Raises Refused ("not-utf-8") for none.

    A beginning in UTF-8 with a few wrong bytes is UTF-8 all the same: other parts of the text may be whole.
    """
    for mark, name in _MARKS:
        if start.startswith(mark):
            return _checked(start, name, whole)
    if name := _wide(start[:_LOOKED_AT]):
        return _checked(start, name, whole)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, whole)
    except UnicodeDecodeError as error:
        around = start[max(error.start - _LOOKED_AT // 2, 0) : error.start + _LOOKED_AT // 2]
        damaged = _damaged(around)
        guess = "" if damaged else _guess(around)
        if guess:
            return _checked(start, guess, whole)
        if whole or not damaged:
            raise Refused("not-utf-8", f"at byte {error.start}") from None
    return "utf-8"


def _damaged(data: bytes) -> bool:
    """Whether this is UTF-8 with a few bytes that are not: more characters of several bytes in it than errors."""
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return len(_BEYOND.findall(text)) - wrong > wrong


def _checked(start: bytes, name: str, whole: bool) -> str:
    """`name`, if the bytes are a text in it."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(start, whole)
    except UnicodeDecodeError as error:
        raise Refused("not-utf-8", f"at byte {error.start}, nor is it {name}") from None
    if name not in UTF8 and (found := _NO_TEXT.search(text)):
        raise Refused("not-utf-8", f"nor {name}: it has the control character {ord(found[0]):#x}")
    return name


def _wide(start: bytes) -> str:
    """UTF-16 without a mark, where every other byte of Latin letters is zero; "" for what is not."""
    half = len(start) // 2
    zeros = (start[0 : 2 * half : 2].count(0), start[1 : 2 * half : 2].count(0))
    if half < 4 or max(zeros) < 0.4 * half or min(zeros) > 0.05 * half:
        return ""
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


def _guess(start: bytes) -> str:
    high, letters = len(_HIGH.findall(start)), len(_LETTER.findall(start))
    try:
        from resiliparse.parse.encoding import detect_encoding

        guess = codecs.lookup(detect_encoding(start) or "ascii").name
    except (ImportError, LookupError):
        guess = "ascii"
    if guess in UTF8 or (guess == "ascii" and high > letters / 2):
        return ""
    few = high < _FEW and letters > high
    return _WESTERN if guess == "ascii" or (few and _LATIN.match(guess)) or guess == "iso8859-1" else guess


class Recoded(io.RawIOBase):
    """What `file` holds in `encoding`, as UTF-8 without a mark; `start` is what was read of it before."""

    def __init__(self, start: bytes, file: IO[bytes], encoding: str) -> None:
        self._start, self._file, self._out = start, file, b""
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        done = False
        while not self._out and not done:
            data, self._start = self._start or self._file.read(1 << 16), b""
            done = not data
            try:
                self._out = self._decoder.decode(data, done).encode("utf-8")
            except UnicodeDecodeError as error:
                raise Refused("not-utf-8", str(error)[:200]) from None
        size = min(len(buffer), len(self._out))
        buffer[:size], self._out = self._out[:size], self._out[size:]
        return size
