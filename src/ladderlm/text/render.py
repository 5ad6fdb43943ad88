"""Conversation to ids: the one place where chat becomes what a model reads, for training and for inference alike.

Only the template may emit control tokens. Where a message spells one, that spelling is hidden behind a private-use
character while the template runs, and encoded afterwards as the plain text it is. (transformers encodes the rendered
text as a whole, so there a user can forge a turn.)
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ladderlm.errors import FormatError, UsageError
from ladderlm.text.template import ChatTemplate
from ladderlm.text.tokenizer import Tokenizer
from ladderlm.types import Audio, Conversation, Image, Message, Reasoning, Text, ToolCall, ToolResult

Span = tuple[int, int]
_PRIVATE = range(0x10F000, 0x10FFFE)  # supplementary private use area B: no text means these
_SENTINEL = chr(0x10FFFE - 1) + "said" + chr(0x10FFFE - 1)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the model reads. `mask` is True on what the assistant says, its end-of-turn token included. `spans` are
    the characters (start, end) of `text` that each id stands for."""

    ids: list[int]
    mask: list[bool]
    text: str
    spans: list[Span]


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Ids, mask and text of a conversation.

    With `add_generation_prompt` the text ends where the assistant is to speak; a last assistant message is then the
    beginning of what it says (a prefill). Without it (training) every turn is whole.
    Raises UsageError for a model without template and for images or audio, FormatError when the template refuses.
    """
    if template is None:
        raise UsageError("this model has no chat template", cure="give it plain text, or fine-tune it for chat")
    messages = wire_messages(conversation)
    tools = [wire_tool(t.name, t.description, t.parameters) for t in conversation.tools]
    shield = _Shield(tokenizer)
    messages, tools = shield.cover(messages), shield.cover(tools)
    prefill = messages.pop() if add_generation_prompt and messages and messages[-1]["role"] == "assistant" else None
    if prefill and prefill.keys() - {"role", "content"}:
        raise UsageError("the beginning of an answer can be text only", cure="no reasoning and tool calls in it")
    text = template(messages, tools, add_generation_prompt=add_generation_prompt)
    said = _said(text, messages, tools, template, tokenizer, strict=not add_generation_prompt)
    if prefill and prefill["content"]:
        begun = _begun(text, [*messages, prefill], tools, template)
        start = len(text) if begun.startswith(text) else len(begun) - len(prefill["content"].lstrip())
        said.append((start, len(begun)))
        text = begun
    return _encode(text, said, tokenizer, shield)


def _begun(prompt: str, messages: list[Any], tools: list[Any], template: ChatTemplate) -> str:
    """The text up to the end of the last message, as that message would stand in the conversation. Where a template
    cannot show it there, it simply follows the prompt."""
    content = messages[-1]["content"]
    text, found, _ = template([*messages[:-1], {**messages[-1], "content": content + _SENTINEL}], tools).partition(
        _SENTINEL
    )
    return text if found and text.endswith(content.lstrip()) else prompt + content  # many templates trim


# --- Wire form ----------------------------------------------------------------------------------------------------


def wire_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages as chat templates (and the OpenAI API) know them; several tool results become several messages."""
    return [m for message in conversation.messages for m in _wire(message)]


def wire_tool(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": name, "description": description, "parameters": dict(parameters)}
    return {"type": "function", "function": function}


def _wire(message: Message) -> Iterator[dict[str, Any]]:
    results = [p for p in message.parts if isinstance(p, ToolResult)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.id, "content": result.text}
    if results and len(results) == len(message.parts):
        return
    out: dict[str, Any] = {"role": message.role, "content": message.text}
    if any(isinstance(p, (Image, Audio)) for p in message.parts):
        raise UsageError("this model reads text only", where=message.role, cure="leave out images and audio")
    if thought := "".join(p.text for p in message.parts if isinstance(p, Reasoning)):
        out["reasoning_content"] = thought
    if calls := [_call(p) for p in message.parts if isinstance(p, ToolCall)]:
        out["tool_calls"] = calls
    if not results or any(isinstance(p, Text) for p in message.parts) or calls:
        yield out


def _call(part: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(part.arguments)
    except ValueError:
        arguments = part.arguments
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": arguments}}


# --- No forged turns ----------------------------------------------------------------------------------------------


class _Shield:
    """Hides spelled control tokens from the template, one private-use character each, and puts them back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = sorted(tokenizer.control, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, names))) if names else None
        self._beginnings = {name[:k] for name in names for k in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        self.hidden: dict[str, str] = {}  # what stands for it -> what was written

    def cover(self, value: Any) -> Any:
        """`value` (strings in lists and dicts) with every control token in it hidden."""
        if isinstance(value, str):
            return self._cover_text(value)
        if isinstance(value, list):
            return [self.cover(v) for v in value]
        if isinstance(value, dict):
            return {self.cover(k): self.cover(v) for k, v in value.items()}
        return value

    def _cover_text(self, text: str) -> str:
        if self._spelled is None:
            return text
        if not text.isascii():  # a message's own private-use characters must not be taken for ours
            text = "".join(self._hide(c) if ord(c) in _PRIVATE else c for c in text)
        text = self._spelled.sub(lambda found: self._hide(found[0]), text)
        bare = text.rstrip()
        for k in range(min(self._longest - 1, len(bare)), 0, -1):
            if bare[-k:] in self._beginnings:  # what follows must not complete it
                return bare[:-k] + self._hide(bare[-k:]) + text[len(bare) :]
        return text

    def _hide(self, text: str) -> str:
        for mark, known in self.hidden.items():
            if known == text:
                return mark
        if len(self.hidden) >= len(_PRIVATE) - 1:
            raise FormatError("too many different private-use characters in one conversation")
        mark = chr(_PRIVATE.start + len(self.hidden))
        self.hidden[mark] = text
        return mark

    def uncover(self, text: str) -> str:
        for mark, written in self.hidden.items():
            text = text.replace(mark, written)
        return text

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """Cuts template output into (control token, True) and (text between, False)."""
        at = 0
        for found in self._spelled.finditer(text) if self._spelled else ():
            if found.start() > at:
                yield text[at : found.start()], False
            yield found[0], True
            at = found.end()
        if at < len(text):
            yield text[at:], False


# --- Who said what ------------------------------------------------------------------------------------------------


def _said(
    text: str, messages: list[Any], tools: list[Any], template: ChatTemplate, tokenizer: Tokenizer, strict: bool
) -> list[Span]:
    """The characters of `text` that the assistant says, end-of-turn tokens included."""
    ends = [tokenizer.token_text(i) for i in tokenizer.stop_ids]
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        turn = (text, messages, i, tools, template, ends)
        span = _by_prefix(*turn) or _by_mark(*turn)
        if span and (not spans or spans[-1][1] <= span[0]):
            spans.append(span)
        elif strict:
            raise FormatError("the chat template hides what the assistant said", where=f"message {i + 1}")
    return spans


def _by_prefix(
    text: str, messages: list[Any], i: int, tools: list[Any], template: ChatTemplate, ends: list[str]
) -> Span | None:
    """From where generation would have begun to the end of the turn, if the template only ever appends."""
    try:
        before = template(messages[:i], tools, add_generation_prompt=True)
        after = template(messages[: i + 1], tools)
    except FormatError:  # a template may refuse an unfinished conversation
        return None
    if not (text.startswith(after) and after.startswith(before)):
        return None
    turn = after[len(before) :]
    last = max(((turn.rfind(e) + len(e)) for e in ends if e in turn), default=len(turn))
    while (end := next((e for e in ends if turn[:last].endswith(e)), "")) and (
        (earlier := turn[: last - len(end)].rstrip()).endswith(tuple(ends))
    ):  # a template may close the whole text too: generation stops at the first
        last = len(earlier)
    return len(before), len(before) + last


def _by_mark(
    text: str, messages: list[Any], i: int, tools: list[Any], template: ChatTemplate, ends: list[str]
) -> Span | None:
    """By rendering again with other words in the message's place: what stays the same was not said."""
    marked = [*messages[:i], {**messages[i], "content": _SENTINEL}, *messages[i + 1 :]]
    head, found, tail = template(marked, tools).partition(_SENTINEL)
    if not found or not text.startswith(head):
        return None
    tail = tail if text.endswith(tail) else template(marked, tools, add_generation_prompt=True).partition(_SENTINEL)[2]
    if not text.endswith(tail) or len(head) > len(text) - len(tail):
        return None
    stop = len(text) - len(tail)
    blank = len(tail) - len(tail.lstrip())
    if "tool_calls" in messages[i]:  # they follow the content
        more = min(((tail.find(e) + len(e)) for e in ends if e in tail), default=0)
    else:
        more = next((blank + len(e) for e in ends if tail[blank:].startswith(e)), 0)
    return _start(head, messages[:i], tools, template), stop + more


def _start(head: str, before: list[Any], tools: list[Any], template: ChatTemplate) -> int:
    """Where generation would begin in `head`, which ends where the assistant's content does: after the generation
    prompt, or, for templates without one, where the blanks before the content begin ("[/INST] Hello")."""
    try:
        bare, prompt = template(before, tools), template(before, tools, add_generation_prompt=True)
    except FormatError:
        return len(head)
    if not prompt.startswith(bare):
        return len(head)
    sign = prompt[len(bare) :]
    start = head.rfind(sign) + len(sign) if sign and sign in head else len(head)
    if not sign:
        start = len(head.rstrip())
    last = before[-1]["content"].strip() if before else ""
    return start if not last or head.rfind(last) + len(last) <= start else len(head)


def _encode(text: str, said: list[Span], tokenizer: Tokenizer, shield: _Shield) -> Rendered:
    """Encodes piece by piece, so that no token reaches over where the assistant begins (generation could not have
    produced it) and spelled control tokens are told from real ones."""
    pieces: list[tuple[str, int | None]] = []
    marks: list[bool] = []
    for start, stop in itertools.pairwise(sorted({edge for span in said for edge in span} | {0, len(text)})):
        mine = any(a <= start and stop <= b for a, b in said)
        for piece, control in shield.pieces(text[start:stop]):
            pieces.append((piece, tokenizer.control[piece]) if control else (shield.uncover(piece), None))
            marks.append(mine)
    out = Rendered([], [], "".join(piece for piece, _ in pieces), [])
    at = 0
    for (piece, _), mine, (ids, spans) in zip(pieces, marks, tokenizer.encode_pieces(pieces), strict=True):
        out.ids.extend(ids)
        out.mask.extend([mine] * len(ids))
        out.spans.extend((at + a, at + b) for a, b in spans)
        at += len(piece)
    return out
