"""What a model says, told apart as it streams: text, reasoning, tool calls.

Knows text only, as the detokeniser gives it. A call that is cut off, malformed or of a tool that is not on offer stays
text; nothing that was said is lost.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ladderlm.text import tagged
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Delta, ToolCall

THINK, THOUGHT = "<think>", "</think>"
_ARGS = "[ARGS]"  # Mistral's newer form: NAME[ARGS]{...}
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*\s*)?(?:\[ARGS\])?\s*(?=\{)")
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Form:
    """How a family writes a call: after `begin` ("" where the JSON stands bare, first of all) and up to `end` a JSON
    object of "name" and `key`, or, if `listed`, a list of them, or, if `tagged`, tags (text/tagged.py)."""

    begin: str
    end: str
    key: str = "arguments"
    listed: bool = False
    tagged: bool = False

    @property
    def begins(self) -> tuple[str, ...]:
        """What may begin a call amid text; tags are read without what should stand around them too."""
        return (self.begin, tagged.FUNCTION) if self.tagged else (self.begin,)

    @property
    def marks(self) -> tuple[str, ...]:
        """The control tokens whose text matters to the reader."""
        return (*filter(None, (self.begin, self.end)), *((_ARGS, "[CALL_ID]") if self.listed else ()))


HERMES = Form("<tool_call>", "</tool_call>")
MISTRAL = Form("[TOOL_CALLS]", "", listed=True)
LLAMA = Form("", "", key="parameters")
QWEN_CODER = Form("<tool_call>", "</tool_call>", tagged=True)
PYTHON_TAG = "<|python_tag|>"  # may stand before a bare call


def form_of(template: ChatTemplate, tokenizer: Tokenizer) -> Form:
    """The form that a model's template writes, else the one its control tokens are for; Hermes' where nothing tells."""
    forms = {
        "<parameter=": QWEN_CODER,
        "<tool_call>": HERMES,
        "[TOOL_CALLS]": MISTRAL,
        '"parameters": ': LLAMA,
        PYTHON_TAG: LLAMA,
    }
    told = (form for mark, form in forms.items() if mark in template.source)
    known = (form for mark, form in forms.items() if mark in tokenizer.control)
    return next(told, None) or next(known, HERMES)


def thinks(template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Whether the model writes its reasoning between <think> and </think>."""
    return THINK in template.source or THINK in tokenizer.control


class Reader:
    """One choice's text to Deltas of its parts.

    `names`: the tools on offer; `schemas`: of these, those of their arguments, for a form that needs them. `sure`: a
    grammar admits nothing but whole calls, so their arguments are told as they come; otherwise a call is told when it
    has proved to be one. `inside`: the prompt has opened the reasoning.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        form: Form = HERMES,
        names: Collection[str] = (),
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        reasons: bool = False,
        inside: bool = False,
        sure: bool = False,
        many: bool = True,
    ) -> None:
        self._index, self._form, self._names = index, form, frozenset(names)
        self._schemas = {name: (schemas or {}).get(name, {}) for name in self._names}
        self._reasons, self._sure, self._many = reasons, sure, many
        self._state: Callable[[], bool] = self._thinking if inside else self._beginning
        self._out: list[Delta] = []
        self._held = ""  # not told yet
        self._raw = ""  # of it, what the call's beginning has taken away already
        self._call: ToolCall | None = None  # being told
        self._scan = Scan()
        self._given = 0  # arguments between tags that are told, of the call
        self._trim = inside  # blanks at the beginning of a part are not told
        self.calls = 0
        self.done = False  # nothing more may be said

    def feed(self, text: str) -> list[Delta]:
        """What can be told now."""
        self._held += text
        while self._held and not self.done and self._state():
            pass
        return self._take()

    def finish(self) -> list[Delta]:
        """What was still held, at the end of the stream."""
        if self._call is None and not self.done:
            rest, self._held, self._raw = self._raw + self._held, "", ""
            if self._state == self._thinking:
                self._tell(rest.rstrip("\n"), "reasoning")
            elif not (self.calls and not rest.strip()):
                self._tell(rest)
        return self._take()

    # --- The states: each takes from what is held, and is false where more must come first --------------------------

    def _beginning(self) -> bool:
        """Nothing is said yet: reasoning comes only here, and so does a bare call."""
        bare = self._held.lstrip()
        if not bare:
            return False
        if self._reasons and bare.startswith(THINK):
            self._held, self._state, self._trim = bare[len(THINK) :], self._thinking, True
            return True
        if self._reasons and THINK.startswith(bare):
            return False
        if self._names and not self._form.begin:
            if PYTHON_TAG.startswith(bare):
                return False
            if bare.startswith(("{", PYTHON_TAG)):
                at = len(self._held) - len(bare.removeprefix(PYTHON_TAG))
                self._raw, self._held = self._held[:at], self._held[at:]
                self._state = self._calling
                return True
        self._state = self._saying
        return True

    def _thinking(self) -> bool:
        if self._trim:
            self._held = self._held.lstrip("\n")
        self._trim = self._trim and not self._held
        thought, found, rest = self._held.partition(THOUGHT)
        if found:
            self._tell(thought.rstrip("\n"), "reasoning")
            self._held, self._trim = rest, True
            self._state = self._after_thought
            return True
        keep = _partial(thought, THOUGHT, "\n")
        self._held = thought[keep:]
        self._tell(thought[:keep], "reasoning")
        return False

    def _after_thought(self) -> bool:
        self._held = self._held.lstrip("\n")
        if not self._held:
            return False
        self._reasons, self._trim, self._state = False, False, self._beginning
        return True

    def _saying(self) -> bool:
        if not (self._names and self._form.begin):
            text, self._held = self._held, ""
            self._tell(text)
            return False
        found = [(at, mark) for mark in self._form.begins if (at := self._held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            text = self._held[:at].rstrip()
            self._tell(text)
            bare = mark == tagged.FUNCTION
            at += 0 if bare else len(mark)
            self._raw, self._held = self._held[len(text) : at], self._held[at:]
            self._state = self._tags_waiting if bare else self._calling
            return True
        keep = min(_partial(self._held, mark, " \n") for mark in self._form.begins)
        text, self._held = self._held[:keep], self._held[keep:]
        self._tell(text)
        return False

    def _calling(self) -> bool:
        """A call begins, or another one of a list; `_raw` is given back as text if none does."""
        rest = self._held.lstrip()
        if not rest:
            return False
        if self._form.tagged and rest[: len(tagged.FUNCTION)] == tagged.FUNCTION[: len(rest)]:
            if len(rest) < len(tagged.FUNCTION):
                return False
            self._raw += self._held[: len(self._held) - len(rest)]
            self._held = rest
            self._state = self._tags if self._sure else self._tags_waiting
            return True
        if self._form.listed and rest[0] == "[" and not rest.startswith(_ARGS):
            self._raw += self._held[: len(self._held) - len(rest) + 1]
            self._held = rest[1:]
            return True
        if rest[0] == "{":
            self._scan, self._state = Scan(), self._within if self._sure else self._waiting
            return True
        if self._form.listed and (named := _NAMED.match(self._held)):
            self._held = f'{{"name": {json.dumps(named[1])}, "arguments": ' + self._held[named.end() :]
            self._scan, self._state = Scan(closes=True), self._waiting
            return True
        if self._form.listed and re.fullmatch(r"[\w.-]{1,64}(\[[A-Z_]*\]?[\w-]*)*", rest):
            return False
        return self._no_call()

    def _within(self) -> bool:
        """A call that a grammar has made sure of: its arguments go out as they come."""
        if self._call is None:
            head = _HEAD.match(self._held)
            if head is None:
                return False
            self._held, self._raw = self._held[head.end() :], ""
            self._call = ToolCall(_fresh_id(), json.loads(f'"{head[1]}"'), "")
            self._out.append(Delta(self._index, "tool_call", call=self._call))
        if not self._scan.ended:
            end = self._scan.feed(self._held)
            self._piece(self._held[:end])
            self._held = self._held[end:]
        if not self._scan.ended or "}" not in self._held:
            return False
        self._held = self._held.partition("}")[2]
        self._called()
        return True

    def _waiting(self) -> bool:
        """A call that may yet prove to be none."""
        end = self._scan.feed(self._held, at=self._scan.read)
        if not self._scan.ended:
            return False
        text = self._held[:end] + ("}" if self._scan.closes else "")
        call = parse(text, self._names)
        if call is None:
            return self._no_call()
        self._held, self._raw = self._held[end:], ""
        self._out.append(Delta(self._index, "tool_call", call=call))
        self._called()
        return True

    def _tags(self) -> bool:
        """A call between tags that a grammar has made sure of: text goes out as it comes, other values when they are
        whole."""
        if self._call is None:
            head = tagged.HEAD.match(self._held)
            if head is None or not head[0].endswith("\n"):
                return False
            self._held, self._raw, self._given = self._held[head.end() :], "", 0
            self._call = ToolCall(_fresh_id(), head[1], "")
            self._out.append(Delta(self._index, "tool_call", call=self._call))
        if self._held.startswith(tagged.FUNCTION_END):
            self._piece("}" if self._given else "{}")
            self._held = self._held[len(tagged.FUNCTION_END) :]
            self._called()
            return True
        key = tagged.KEY.match(self._held)
        if key is None:
            return False
        schema, end = self._schemas.get(self._call.name, {}), self._held.find(tagged.VALUE_END, key.end())
        if end < 0:
            text = self._held[key.end() : _before_end(self._held)]
            if "null".startswith(text.lower()) or tagged.kind_of(key[1], schema) != "text":
                return False
            said, self._held = json.dumps(text, ensure_ascii=False)[:-1], self._held[key.end() + len(text) :]
            self._state = self._tag_text
        else:
            value = tagged.converted(self._held[key.end() : end], key[1], schema)
            said, self._held = json.dumps(value, ensure_ascii=False), self._held[end + len(tagged.VALUE_END) :]
        self._piece(f"{', ' if self._given else '{'}{json.dumps(key[1], ensure_ascii=False)}: {said}")
        self._given += 1
        return True

    def _tag_text(self) -> bool:
        """Within an argument that is text."""
        end = self._held.find(tagged.VALUE_END)
        text = self._held[: _before_end(self._held) if end < 0 else end]
        self._piece(json.dumps(text, ensure_ascii=False)[1:-1] + ('"' if end >= 0 else ""))
        self._held = self._held[len(text) + (len(tagged.VALUE_END) if end >= 0 else 0) :]
        self._state = self._tag_text if end < 0 else self._tags
        return end >= 0

    def _tags_waiting(self) -> bool:
        """A call between tags that may yet prove to be none."""
        text, ended, rest = self._held.partition(tagged.FUNCTION_END)
        if not ended:
            return False
        said = tagged.parse(text, self._schemas)
        if said is None:
            self._raw, self._held = self._raw + tagged.FUNCTION, self._held[len(tagged.FUNCTION) :]
            return self._no_call()
        self._held, self._raw = rest, ""
        self._out.append(Delta(self._index, "tool_call", call=ToolCall(_fresh_id(), *said)))
        self._called()
        return True

    def _called(self) -> None:
        """A call is told; what may follow it."""
        self._call, self._state = None, self._following
        self.calls += 1

    def _following(self) -> bool:
        rest, form, closed = self._held.lstrip(), self._form, False
        if form.listed:
            rest = rest.lstrip("], \n")
        elif form.end:
            if form.end.startswith(rest) and rest != form.end:
                return False
            closed = rest.startswith(form.end)
            rest = rest.removeprefix(form.end)
        else:
            rest = rest.lstrip("; \n")
        self._held = rest
        if (rest or closed) and not self._many:
            self.done = True
            return False
        if not rest:
            if not form.end:
                return False
            self._state = self._saying
            return True
        self._state = self._calling if not form.end and rest[0] == "{" else self._saying
        return True

    def _no_call(self) -> bool:
        """What looked like a call is text."""
        self._tell(self._raw)
        self._raw, self._state = "", self._saying
        if not self._form.begin:
            self._names = frozenset()
        return True

    # --- What goes out --------------------------------------------------------------------------------------------

    def _tell(self, text: str, part: str = "text") -> None:
        if text:
            self._out.append(Delta(self._index, "reasoning" if part == "reasoning" else "text", text))

    def _piece(self, arguments: str) -> None:
        if arguments and self._call is not None:
            piece = ToolCall(self._call.id, self._call.name, arguments)
            self._out.append(Delta(self._index, "tool_call", call=piece))

    def _take(self) -> list[Delta]:
        out, self._out = self._out, []
        return out


class Scan:
    """Finds where a JSON object or list ends, read piece by piece. With `closes` its head is made up: the object
    inside it ends it."""

    def __init__(self, *, closes: bool = False) -> None:
        self.closes = closes
        self.read = 0
        self.ended = False
        self._depth, self._quoted, self._escaped = -1 if closes else 0, False, False

    def feed(self, text: str, at: int = 0) -> int:
        """How much of `text` belongs to it. Starts at `at`."""
        for i in range(at, len(text)):
            character = text[i]
            if self._quoted:
                self._quoted = character != '"' or self._escaped
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    self.read = i + 1
                    return i + 1
        self.read = len(text)
        return len(text)


def parse(text: str, names: Collection[str]) -> ToolCall | None:
    """The call that a whole JSON object says, if it is one of `names`."""
    try:
        said = json.loads(text)
        name = said["name"]
        arguments: object = next((said[key] for key in ("arguments", "parameters") if key in said), {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if name not in names or not isinstance(arguments, dict):
            return None
        return ToolCall(_fresh_id(), name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _partial(text: str, mark: str, blanks: str) -> int:
    """From where on `text` may become `mark`, with the blanks before it."""
    for size in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:size]):
            return len(text[:-size].rstrip(blanks))
    return len(text.rstrip(blanks))


def _before_end(text: str) -> int:
    """How much of `text` is not the beginning of a value's end."""
    return max(0, len(text) - len(tagged.VALUE_END) + 1)


def _fresh_id() -> str:
    # Mistral's templates take nine letters and digits, and others take anything.
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))
