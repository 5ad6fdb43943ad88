"""Tools before the answer: described to models whose template cannot, and grammars that make every call a sound one."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.nodes import Name
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ladderlm.errors import UsageError
from ladderlm.text import tagged
from ladderlm.text.calls import HERMES, LLAMA, PYTHON_TAG, THINK, THOUGHT, Form
from ladderlm.text.render import wire_tool
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Conversation, Message, Reasoning, Text, Tool, ToolCall, ToolResult

_OPEN = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties", "additionalProperties", "unevaluatedProperties", "not")
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models write it
_INTRODUCTION = """You can call these functions, each described by a JSON schema:
<tools>
{tools}
</tools>
To call one, answer with a JSON object of its name and arguments, between tags:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def fitted(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """The conversation as the template can show it: what it has no place for (tools, calls, results) becomes text."""
    if not conversation.tools and not any(isinstance(p, (ToolCall, ToolResult)) for m in conversation.messages
                                          for p in m.parts):  # fmt: skip
        return conversation
    messages = conversation.messages
    if "tool_calls" not in template.source:
        messages = tuple(map(_calls_as_text, messages))
    if '"tool"' not in template.source and "'tool'" not in template.source:
        messages = _results_as_user(messages)
    if not conversation.tools or shows_tools(template):
        return dataclasses.replace(conversation, messages=messages)
    tools = "\n".join(json.dumps(wire_tool(t.name, t.description, t.parameters), ensure_ascii=False)
                      for t in conversation.tools)  # fmt: skip
    told = _INTRODUCTION.format(tools=tools)
    if messages and messages[0].role == "system":
        told, messages = f"{messages[0].text}\n\n{told}", messages[1:]
    return Conversation((Message.of("system", told), *messages))


def shows_tools(template: ChatTemplate) -> bool:
    """Whether the template has a place for tools."""
    return "tools" in _variables(template.source)


@functools.lru_cache(64)
def _variables(source: str) -> frozenset[str]:
    """The names that a template reads, and those it sets from them."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        found = environment.parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source))
    except TemplateError:  # a statement that only the full environment knows
        return frozenset(source.split())
    return frozenset(name.name for name in found.find_all(Name))


def _calls_as_text(message: Message) -> Message:
    if not any(isinstance(p, ToolCall) for p in message.parts):
        return message
    calls = [
        f'{HERMES.begin}\n{{"name": {json.dumps(p.name)}, "arguments": {p.arguments}}}\n{HERMES.end}'
        for p in message.parts
        if isinstance(p, ToolCall)
    ]
    thought = tuple(p for p in message.parts if isinstance(p, Reasoning))
    return Message(message.role, (*thought, Text("\n".join(filter(None, (message.text, *calls))))))


def _results_as_user(messages: Sequence[Message]) -> tuple[Message, ...]:
    out: list[Message] = []
    for message in messages:
        results = [p.text for p in message.parts if isinstance(p, ToolResult)]
        if not results:
            out.append(message)
            continue
        said = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in results)
        if message.text:
            said = f"{said}\n{message.text}"
        out.append(Message.of("user", said))
    return tuple(out)


# --- Grammars -----------------------------------------------------------------------------------------------------


def grammar(
    form: Form,
    tools: Sequence[Tool],
    tokenizer: Tokenizer,
    *,
    required: bool = False,
    many: bool = True,
    reasons: bool = False,
    inside: bool = False,
    answer: Mapping[str, Any] | None = None,
) -> str | None:
    """Lark's text for answers in which every call is whole and fits its tool's schema; None where nothing is forced.

    `answer` is the form of an answer that is no call (a response_format); `reasons` and `inside` are as for a Reader.
    """
    if form == LLAMA and not required and answer is None:
        return None  # a bare call cannot be told from an answer in JSON: it is read, not forced
    marks = _Marks(tokenizer)
    body = " | ".join(f"call_{i}" for i in range(len(tools)))
    begin, end = marks.of(form.begin), marks.of(form.end)
    if form.listed:
        more = '(", " body)*' if many else ""
        block = f'"[" body {more} "]"'
    else:
        block = f'"\\n" body "\\n" {end}' if form.end else "body"
    first = f"{begin} {block}".strip()
    if not form.begin and PYTHON_TAG in tokenizer.control:
        first = f"({marks.of(PYTHON_TAG)})? body"
    again = f'("\\n" {begin} {block})*' if many and form.end else ""
    if required or answer is not None:
        thought = _thought(marks, inside) if reasons or inside else ""
        lines = [f"start: {thought} {'calls' if required else '(calls | answer)'}", f"calls: {first} {again}"]
        lines += [] if answer is None or required else [f"answer: {_answer(answer)}"]
        lines += [f"thought[lazy]: TEXT {json.dumps(THOUGHT)}"] if "thought" in thought else []
    else:
        lines = _free(begin, form.begin, block, many, marks, reasons)
    if form.tagged:
        lines += tagged.OTHERS
    for i, tool in enumerate(tools):
        if form.tagged:
            lines += tagged.rules(i, tool.name, parameters(tool), _SPACED)
            continue
        lines += [
            f'call_{i}: {json.dumps(_head(form, tool))} args_{i} "}}"',
            f"args_{i}: %json {json.dumps(parameters(tool))}",
        ]
    return "\n".join(["%llguidance {}", *lines, f"body: {body}", "TEXT: /(.|\\n)*/"])


def _free(begin: str, mark: str, block: str, many: bool, marks: _Marks, reasons: bool) -> list[str]:
    """Any text, and calls in it."""
    repeat = "*" if many else "?"
    other = " | ".join(m for m in (marks.of(THINK), marks.of(THOUGHT)) if m.startswith("<[")) if reasons else ""
    between = f"(TEXT ({other}))*" if other else ""
    if begin.startswith("<["):
        return [f"start: (text {begin} {block}){repeat} text", f"text: {between} TEXT"]
    return [
        f"start: ({between} opening {block}){repeat} {between} TEXT",
        f"opening[lazy]: TEXT {json.dumps(mark)}",
    ]


def _thought(marks: _Marks, inside: bool) -> str:
    """Reasoning that comes before what is forced: it may, and must where the prompt has opened it."""
    closing = f"TEXT {marks.of(THOUGHT)}" if marks.of(THOUGHT).startswith("<[") else "thought"
    return f'{closing} "\\n"*' if inside else f'({marks.of(THINK)} {closing} "\\n"*)?'


def _head(form: Form, tool: Tool) -> str:
    return f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{form.key}": '


def parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, closed unless it says otherwise."""
    schema = dict(tool.parameters)
    schema.setdefault("type", "object")
    if not any(key in schema for key in _OPEN):
        schema["additionalProperties"] = False
        schema.setdefault("properties", {})
    return schema | {"x-guidance": _SPACED}


def _answer(form: Mapping[str, Any]) -> str:
    kind = form.get("type")
    if kind == "json_object":
        return '%json {"type": "object", "x-guidance": {"whitespace_flexible": false}}'
    if kind == "json_schema":
        schema = form.get("json_schema", form).get("schema") or {}
        return f"%json {json.dumps(dict(schema) | {'x-guidance': {'whitespace_flexible': False}})}"
    raise UsageError(f"tools do not go together with a {kind}", where="response_format", cure="a json_schema does")


class _Marks:
    """Marks as a grammar names them: a control token by its id, what is text as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._control = tokenizer.control

    def of(self, mark: str) -> str:
        id = self._control.get(mark)
        return f"<[{id}]>" if id is not None else json.dumps(mark) if mark else ""
