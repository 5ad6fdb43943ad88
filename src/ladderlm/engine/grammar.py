"""Answers that must parse: response_format as masks over the vocabulary, through llguidance.

{"type": "text"}
{"type": "json_object"}
{"type": "json_schema", "json_schema": {"schema": {...}}}   (the OpenAI form; "schema" may also stand directly)
{"type": "regex", "regex": "..."}
{"type": "grammar", "grammar": "..."}                       (Lark's syntax, or llama.cpp's GBNF)
{"type": "lark", "grammar": "..."}                          (Lark's syntax as it is)

JSON is whole at the end: when an answer nears its last token, what can be closed is closed.

The mask for a step is computed by another thread while the network runs. What a grammar may cost is bounded: one that
is too large or too ambiguous is an error of its own request.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ladderlm.errors import UsageError, nearest

if TYPE_CHECKING:
    from ladderlm.text.tokenizer import Tokenizer

Bits = npt.NDArray[np.uint8]

_COMPACT = {"whitespace_flexible": False}  # else a weak model may write blanks for ever
_JSON = ("json_object", "json_schema")
_QUOTE, _BACKSLASH = b'"\\'
_KINDS = ("text", "json_object", "json_schema", "regex", "grammar", "lark")
_LONGEST = 2**18  # characters of a grammar
_DEEPEST = 256  # brackets within brackets
_FUEL = 200_000  # work of the lexer in one step, some 15 ms; llguidance gives up beyond
_TIMEOUT = 10.0  # seconds for one mask; the limits below end it long before
_DEAD_END = "NoExtensionBias"  # what llguidance says where no token may follow


class Grammars:
    """Compiles response formats for one tokenizer, on the caller's thread. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._lock = threading.Lock()
        self._compiled: Any = None  # the LLTokenizer: built on first use, it costs a fraction of a second
        self._worker = ThreadPoolExecutor(1, "grammar")

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
        limits = llguidance.LLParserLimits(verbose_errors=False, step_lexer_fuel=_FUEL, initial_lexer_fuel=5 * _FUEL)
        matcher = llguidance.LLMatcher(self._compiled, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise UsageError(f"not a usable grammar: {matcher.get_error()[:300]}", where="response_format")
        closers = self._closers if response_format.get("type") in _JSON else None
        return Matcher(matcher, self._vocab_size, self._worker, closers)

    @functools.cached_property
    def _closers(self) -> _Closers:
        texts = [self._tokenizer.token_bytes(id).decode("utf-8", "replace") for id in range(self._vocab_size)]

        def those(pattern: str) -> Bits:
            return np.packbits([re.fullmatch(pattern, text) is not None for text in texts], bitorder="little")

        outside = those(r"[\]}]+"), those(","), those('"')
        return _Closers(self._tokenizer.token_bytes, (those(r'"[\]}]*'),), outside)


class _Closers(NamedTuple):
    """The tokens that bring JSON nearer to its end, the better ones first: inside of a string, its end; elsewhere the
    end of an object or a list, that of a number, and for a value still to come a string."""

    bytes_of: Callable[[int], bytes]
    inside: tuple[Bits, ...]
    outside: tuple[Bits, ...]


def schema_fault(schema: Mapping[str, Any]) -> str:
    """Why a JSON schema cannot be forced on an answer; empty where it can."""
    from llguidance import LLMatcher

    try:
        source = LLMatcher.grammar_from_json_schema(_bounded(json.dumps(schema)))
    except (ValueError, TypeError, RecursionError) as error:
        return str(error)[:300]
    return str(LLMatcher.validate_grammar(source))[:300]


def _source(response_format: Mapping[str, Any]) -> str | None:
    """The grammar in llguidance's form."""
    from llguidance import LLMatcher

    kind = response_format.get("type")
    if kind == "text":
        return None
    try:
        if kind == "regex":
            return str(LLMatcher.grammar_from_regex(_bounded(_field(response_format, "regex", str))))
        if kind == "grammar":
            return str(LLMatcher.grammar_from_lark(_lark(_bounded(_field(response_format, "grammar", str)))))
        if kind == "lark":
            return str(LLMatcher.grammar_from_lark(_bounded(_field(response_format, "grammar", str))))
        if kind == "json_object":
            schema: Any = {"type": "object"}
        elif kind == "json_schema":
            schema = _field(response_format.get("json_schema", response_format), "schema", Mapping)
        else:
            raise UsageError(f"unknown response_format {kind!r}", cure=nearest(str(kind), _KINDS))
        text = _bounded(json.dumps(schema))
        return str(LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT))
    except UsageError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"not a usable {kind}: {str(error)[:300]}", where="response_format") from None


def _lark(text: str) -> str:
    """A grammar in Lark's syntax; one in GBNF is translated."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text))
    except Exception as error:  # its own exceptions have no common class
        raise UsageError(f"not a usable grammar: {str(error)[:300]}", where="response_format") from None


def _bounded(text: str) -> str:
    """`text`, if it is neither too long nor nested so deeply that a parser's stack could overflow."""
    if len(text) > _LONGEST:
        raise UsageError(f"longer than {_LONGEST} characters", where="response_format")
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(depth, deepest)
    if deepest > _DEEPEST:
        raise UsageError(f"nested more than {_DEEPEST} deep", where="response_format")
    return text


def _field(table: Any, name: str, kind: type) -> Any:
    if not isinstance(table, Mapping) or not isinstance(table.get(name), kind):
        raise UsageError(f"response_format needs {name!r}", where="response_format")
    return table[name]


class Matcher:
    """What has been written so far, and what may follow."""

    def __init__(
        self, matcher: Any, vocab_size: int, worker: ThreadPoolExecutor, closers: _Closers | None = None
    ) -> None:
        self._matcher, self._worker, self._closers = matcher, worker, closers
        self._quoted = self._escaped = False  # within a string of JSON; right after a backslash in it
        self._words = np.zeros((vocab_size + 31) // 32, np.uint32)
        self._bits = self._words.view(np.uint8)[: (vocab_size + 7) // 8]
        self._mask: Future[str] | None = None
        self.done = False  # nothing may follow any more
        error = self._fill()
        if _DEAD_END in error or not (error or self._words.any()):
            raise UsageError("the grammar admits no text", where="response_format")
        if error:
            raise self._failed(error)

    def allowed(self, *, closing: bool = False) -> Bits:
        """A bit for each token that says whether it may follow, the lowest of a byte first; valid until `accept`.

        With `closing` only those that close something, where there are any.
        Raises UsageError where the grammar turns out to be too costly.
        """
        self._settle()
        if not closing or self._closers is None:
            return self._bits
        closers = self._closers.inside if self._quoted else self._closers.outside
        return next((bits for bits in (self._bits & those for those in closers) if bits.any()), self._bits)

    def accept(self, token: int) -> None:
        """Moves on by one token that `allowed` admits; what may follow is computed meanwhile."""
        self._settle()
        if not self._matcher.consume_token(token):
            raise self._failed(self._matcher.get_error())
        if self._closers is not None:
            for byte in self._closers.bytes_of(token):
                self._quoted ^= byte == _QUOTE and not self._escaped
                self._escaped = self._quoted and byte == _BACKSLASH and not self._escaped
        self.done = bool(self._matcher.is_stopped())
        if not self.done:
            self._mask = self._worker.submit(self._fill)

    def forced(self) -> list[int]:
        """The tokens that must follow now, as far as there is no choice: they can be drafted."""
        self._settle()
        return [] if self.done else list(self._matcher.compute_ff_tokens())

    def _fill(self) -> str:
        """Computes the mask, without the interpreter's lock. The error, if any."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        return self._matcher.get_error() if self._matcher.is_error() else ""

    def _settle(self) -> None:
        """Waits for the mask: the matcher is not for two threads at once."""
        if self._mask is None:
            return
        try:
            error = self._mask.result(_TIMEOUT)
        except TimeoutError:
            error = f"no mask within {_TIMEOUT:.0f} s"
        if error:
            raise self._failed(error)
        self._mask = None

    def _failed(self, why: str) -> UsageError:
        return UsageError(f"the grammar failed: {why[:300]}", where="response_format", cure="a simpler one may do")
