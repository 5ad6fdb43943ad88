"""A conversation told in short, by the model that is to go on with it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ladderlm.errors import ContextOverflow, DeadlineExceeded
from ladderlm.types import (
    Cancel,
    Chat,
    Choice,
    Completion,
    Conversation,
    Delta,
    Image,
    Message,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    Usage,
)

LIMIT = 512  # tokens of a summary
SMALLEST = 200  # characters: what is shorter is not cut in two
ASKED = (
    "Write down, briefly and in plain text, what somebody must know to go on with the conversation below: what the "
    "user wants and what of it is still open, and the facts, names, numbers, decisions and results in it. Do not "
    "answer it."
)
SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "Setting", "tool": "Tool"}


def summarise(
    chat: Chat,
    conversation: Conversation,
    *,
    cancel: Cancel | None = None,
    deadline: float | None = None,
    priority: int = 0,
) -> Iterator[Delta]:
    """The summary, then what it took. What is too long for the model is read in pieces, each with the summary so far.

    Raises ContextOverflow where not even a sentence fits, DeadlineExceeded after `deadline` (of time.monotonic).
    """
    left = [told for message in conversation.messages if (told := _told(message))]
    summary, take, usage = "", len(left), Usage()
    while left:
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineExceeded("the conversation was not summed up in time")
        piece = "\n\n".join([ASKED, *([f"What was said before it: {summary}"] if summary else []), *left[:take]])
        try:
            made = Completion.fold(chat.stream(
                Conversation.of(piece), Sampling(temperature=0, max_tokens=LIMIT), cancel=cancel,
                deadline=deadline, priority=priority,
            ))  # fmt: skip
        except ContextOverflow:
            full = True
        else:
            usage = _sum(usage, made.usage)
            said = made.choices[0] if made.choices else Choice()
            if said.finish_reason == "cancelled":
                break
            full = said.finish_reason == "length" and made.usage.completion_tokens < LIMIT  # no room for an answer
        if not full:
            summary, left = said.text.strip(), left[take:]
        elif take > 1:
            take = (take + 1) // 2
        else:
            left[:1] = _halves(left[0])
    yield Delta(text=summary)
    yield Delta(finish_reason="stop", usage=usage)


def _told(message: Message) -> str:
    """A turn as text, without its thoughts."""
    said = [part for part in map(_part, message.parts) if part]
    return f"{SPEAKERS[message.role]}: {' '.join(said)}" if said else ""


def _part(part: object) -> str:
    match part:
        case Text(text) | ToolResult(_, text):
            return text
        case ToolCall(_, name, arguments):
            return f"[calls {name} with {arguments}]"
        case Image():
            return "[an image]"
    return ""


def _halves(text: str) -> list[str]:
    if len(text) < SMALLEST:
        raise ContextOverflow("the model's context is too small for a summary")
    middle = len(text) // 2
    cut = text.rfind(" ", middle - SMALLEST // 4, middle) + 1 or middle
    return [text[:cut], text[cut:]]


def _sum(a: Usage, b: Usage) -> Usage:
    cost = None if a.cost is None and b.cost is None else (a.cost or 0) + (b.cost or 0)
    return Usage(
        a.prompt_tokens + b.prompt_tokens, a.completion_tokens + b.completion_tokens, a.cached_tokens + b.cached_tokens,
        cost,
    )  # fmt: skip
