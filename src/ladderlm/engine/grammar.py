"""Answers that must parse: response_format as masks over the vocabulary, through llguidance.

{"type": "text"}
{"type": "json_object"}
{"type": "json_schema", "json_schema": {"schema": {...}}}   (the OpenAI form; "schema" may also stand directly)
{"type": "regex", "regex": "..."}
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ladderlm.errors import UsageError, nearest

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

_COMPACT = {"whitespace_flexible": False}  # else a weak model may write blanks for ever


class Grammars:
    """Compiles response formats for one tokenizer. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._lock = threading.Lock()
        self._compiled: Any = None  # the LLTokenizer: built on first use, it costs a fraction of a second

    def open(self, response_format: Mapping[str, Any]) -> Matcher | None:
        """A fresh matcher; None for plain text. UsageError for a format that makes no sense."""
        import llguidance

        source = _source(response_format)
        if source is None:
            return None
        with self._lock:
            if self._compiled is None:
                ends = list(self._tokenizer.stop_ids)
                self._compiled = llguidance.LLTokenizer(
                    self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=ends or None
                )
        matcher = llguidance.LLMatcher(self._compiled, source, log_level=0)
        if matcher.is_error():
            raise UsageError(f"not a usable grammar: {matcher.get_error()[:300]}", where="response_format")
        return Matcher(matcher, self._vocab_size)


def _source(response_format: Mapping[str, Any]) -> str | None:
    """The grammar in llguidance's form."""
    from llguidance import LLMatcher

    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(_field(response_format, "regex", str)))
    if kind == "json_object":
        schema: Any = {"type": "object"}
    elif kind == "json_schema":
        schema = _field(response_format.get("json_schema", response_format), "schema", Mapping)
    else:
        cure = nearest(str(kind), ("text", "json_object", "json_schema", "regex"))
        raise UsageError(f"unknown response_format {kind!r}", cure=cure)
    try:
        return str(LLMatcher.grammar_from_json_schema(dict(schema), overrides=_COMPACT))
    except ValueError as error:
        raise UsageError(f"not a usable schema: {error}", where="response_format") from None


def _field(table: Any, name: str, kind: type) -> Any:
    if not isinstance(table, Mapping) or not isinstance(table.get(name), kind):
        raise UsageError(f"response_format needs {name!r}", where="response_format")
    return table[name]


class Matcher:
    """What has been written so far, and what may follow."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    @property
    def done(self) -> bool:
        """Nothing may follow any more."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it may follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)

    def accept(self, token: int) -> None:
        """Moves on by one token that `allowed` admits."""
        if not self._matcher.consume_token(token):
            raise UsageError(f"the grammar failed: {self._matcher.get_error()[:300]}", where="response_format")
