"""Tokens to text, as they come: the one state machine of every stream."""

from __future__ import annotations

import codecs
import dataclasses
import functools
from bisect import bisect_right
from collections.abc import Collection

from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Token


class Detokeniser:
    """Turns a stream of tokens into text that can be shown at once.

    A character is emitted when its last byte is here; text that may be the beginning of a stop string is held until
    that is settled. Control tokens have no text. What is emitted in all equals `tokenizer.decode` of all ids, cut
    before the first stop string. With `begins` the text starts here, and the space that SentencePiece puts before a
    first word is left out, as `decode` does; else it continues another. `shown` are control tokens that have text
    here: the marks that tell a call or a thought.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), *, begins: bool = False, shown: Collection[str] = ()
    ) -> None:
        self._tokenizer, self._stops = tokenizer, _stops(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._control = frozenset(id for name, id in tokenizer.control.items() if name not in shown)
        self._held = ""
        self._strip = begins and tokenizer.dummy_space
        self.stopped = False
        self.stopped_by = ""  # the stop string

    def feed(self, token: Token) -> tuple[str, Token]:
        """The text that can be shown now ("" after a stop), and the token with its own text and bytes filled in."""
        data = b"" if token.id is None else self._tokenizer.token_bytes(token.id)
        if token.top and not token.top[0].text:
            named = (dataclasses.replace(c, text=self._text(c.id)) for c in token.top)
            token = dataclasses.replace(token, top=tuple(named))
        token = dataclasses.replace(token, text=data.decode("utf-8", "replace"), data=tuple(data))
        if self.stopped or token.id in self._control:
            return "", token
        return self._settle(self._decoder.decode(data)), token

    def finish(self) -> str:
        """What was still held, at the end of the stream."""
        if self.stopped:
            return ""
        text = self._settle(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _text(self, id: int | None) -> str:
        return "" if id is None else self._tokenizer.token_bytes(id).decode("utf-8", "replace")

    def _settle(self, new: str) -> str:
        """Adds `new` to what is held and takes out what no stop string can claim any more."""
        if self._strip and new:
            self._strip, new = False, new.removeprefix(" ")
        text = self._held + new
        cut, hold = self._stops.find(text) if self._stops else (-1, len(text))
        if cut >= 0:
            self.stopped, self._held = True, ""
            self.stopped_by = self._stops.at(text, cut) if self._stops else ""
            return text[:cut]
        self._held = text[hold:]
        return text[:hold]


class _Stops:
    """Stop strings, found at a cost that hardly depends on how many they are."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._sorted, self._set = sorted(set(stop)), frozenset(stop)
        self._lengths = sorted({len(s) for s in stop})
        self._firsts = frozenset(s[:1] for s in stop)

    def find(self, text: str) -> tuple[int, int]:
        """Where the first one begins, -1 if none is in `text`; and from where on `text` may yet become one."""
        hold = len(text)
        for at, first in enumerate(text):
            if first not in self._firsts:
                continue
            rest = text[at:]
            for length in self._lengths:
                if length > len(rest):
                    break
                if rest[:length] in self._set:
                    return at, at
            if hold == len(text):
                after = bisect_right(self._sorted, rest)  # those that begin with `rest` come right after it
                if after < len(self._sorted) and self._sorted[after].startswith(rest):
                    hold = at
        return -1, hold

    def at(self, text: str, begin: int) -> str:
        """The shortest one that begins there."""
        return next(s for s in sorted(self._sorted, key=len) if text.startswith(s, begin))


@functools.lru_cache(8)
def _stops(stop: tuple[str, ...]) -> _Stops | None:
    return _Stops(stop) if stop else None
