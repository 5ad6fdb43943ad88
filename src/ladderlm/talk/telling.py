"""What a conversation's tools and a model's reasoning mean for its answer: what is forced, and how it is told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ladderlm.engine.grammar import schema_fault
from ladderlm.errors import UsageError
from ladderlm.text.calls import HERMES, THINK, THOUGHT, Form, Reader, form_of, thinks
from ladderlm.text.detokenise import Detokeniser
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.text.tools import grammar, parameters, shows_tools
from ladderlm.types import Conversation, Delta, Sampling, Tool


@dataclass(frozen=True, slots=True)
class Telling:
    """How one answer is read. `form` is the grammar that it must follow, if any; `begins`: it continues no text."""

    calls: Form = HERMES
    names: frozenset[str] = frozenset()
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: bool = False
    inside: bool = False
    many: bool = True
    begins: bool = False
    form: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation, prompt: str, sampling: Sampling
    ) -> Telling:
        """For the answer to `conversation`, which was rendered as `prompt`. UsageError for what cannot be forced."""
        tools = conversation.tools
        if sampling.tool_choice == "required" and not tools:
            raise UsageError("a tool call is required, and no tools are offered", where="tool_choice")
        reasons = thinks(template, tokenizer) and (sampling.response_format is None or bool(tools))
        inside = reasons and prompt.rstrip().endswith(THINK)
        continued = bool(conversation.messages) and conversation.messages[-1].role == "assistant"
        form = sampling.response_format
        plain = cls(reasons=reasons and not continued, inside=inside, begins=not continued, form=form)
        if not tools:
            return plain
        calls = form_of(template, tokenizer) if shows_tools(template) else HERMES
        lark = grammar(
            calls, [_usable(tool) for tool in tools], tokenizer, required=sampling.tool_choice == "required",
            many=sampling.parallel_tool_calls, reasons=plain.reasons, inside=inside,
            answer=None if form is None or form.get("type") == "text" else form,
        )  # fmt: skip
        return dataclasses.replace(
            plain, calls=calls, names=frozenset(t.name for t in tools), many=sampling.parallel_tool_calls,
            schemas={t.name: t.parameters for t in tools},
            form=None if lark is None else {"type": "lark", "grammar": lark},
        )  # fmt: skip

    @property
    def marks(self) -> tuple[str, ...]:
        """Control tokens that the reader must see."""
        return (*((THINK, THOUGHT) if self.reasons else ()), *(self.calls.marks if self.names else ()))

    def reader(self, index: int) -> Reader:
        return Reader(
            index, form=self.calls, names=self.names, schemas=self.schemas, reasons=self.reasons, inside=self.inside,
            sure=bool(self.names) and self.form is not None, many=self.many,
        )  # fmt: skip


def _usable(tool: Tool) -> Tool:
    """The tool as a grammar can hold it: where its schema is beyond that, any object will do, unless it is strict."""
    fault = schema_fault(parameters(tool))
    if not fault:
        return tool
    if tool.strict:
        raise UsageError(f"not a usable schema: {fault}", where=f"tools: {tool.name}", cure="leave strict out")
    return dataclasses.replace(tool, parameters={"type": "object", "additionalProperties": True})


class Saying:
    """One choice of an answer: tokens to text, and text to parts."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], index: int, telling: Telling | None) -> None:
        begins, marks = (telling.begins, telling.marks) if telling else (False, ())
        self._text = Detokeniser(tokenizer, stop, begins=begins, shown=marks)
        self._index = index
        self._reader = telling.reader(index) if telling and (telling.names or telling.reasons) else None

    @property
    def stopped(self) -> bool:
        """A stop string, or a call that was to be the only one, has ended it; the engine need not go on."""
        return self._text.stopped or (self._reader is not None and self._reader.done)

    def say(self, delta: Delta) -> list[Delta]:
        """The engine's delta with its text in parts, or what a stop string leaves of it. Its tokens come first."""
        text, tokens = "", []
        for token in delta.tokens:
            new, named = self._text.feed(token)
            text += new
            tokens.append(named)
            if self._text.stopped:
                break
        if delta.finish_reason and not self._text.stopped:
            text += self._text.finish()
        reason = "stop" if self._text.stopped else delta.finish_reason
        by = self._text.stopped_by
        if self._reader is None:
            said = Delta(self._index, text=text, tokens=tuple(tokens), finish_reason=reason, stopped_by=by)
            return [said] if text or tokens or reason else []
        parts = self._reader.feed(text)
        if self._reader.done:
            reason = "stop"
        if reason:
            parts += self._reader.finish()
        if tokens:
            first = parts[0] if parts else Delta(self._index)
            parts[:1] = [dataclasses.replace(first, tokens=tuple(tokens))]
        if reason:
            end = "tool_calls" if self._reader.calls and reason == "stop" else reason
            parts.append(Delta(self._index, finish_reason=end, stopped_by=by))
        return parts
