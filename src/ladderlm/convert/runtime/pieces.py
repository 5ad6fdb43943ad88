"""A chat template as a few literal pieces, found by example and kept only if they reproduce it exactly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ladderlm.convert.runtime.run import BREAK, DATE, Chat
from ladderlm.errors import FormatError
from ladderlm.text.template import ChatTemplate

Messages = list[dict[str, str]]
_S, _U, _A, _V = ("\U000f5a01s\U000f5a02", "\U000f5a01u\U000f5a02", "\U000f5a01a\U000f5a02", "\U000f5a01v\U000f5a02")
_ROLES = ("system", "user", "assistant")
_TURNS = (
    ("Hi",),
    ("What is 2 + 2?", "4", "Sure?"),
    ("  two\n\n\nlines\t ", " leading and trailing \n", "\r\nend\n", "\n\nyes", " x "),
    ("日本語 👩\u200d👧", "<b>&amp;</b> \"quotes\" 'n' \\ {{ x }} {% y %}", "[INST] <|im_end|>", "</s>", "a: b"),
    ("Why?", "<think>\nLet me see.\n</think>\n\nSo.", "And?"),
)
_FORGET = ("", r"(?s)\A.*</think>\n*", r"(?s)\A.*</think>")  # what is taken off an earlier answer
_SYSTEMS = ("You are brief.\nAnswer in one word.", "  blanks \n")


def literal_pieces(template: ChatTemplate) -> dict[str, Any] | None:
    """The pieces that run.py puts together, or None when no such pieces give what the template does.

    A conversation is `open`, or a system message between the two of `system` (None: the template holds none), then
    turns: what the user says is followed by `user`, the last time by `answer`; what the assistant says by
    `assistant`. Blanks around what the roles in `trim` say are taken off, and what matches `forget` in an answer.
    """
    bracket = f"{{% macro strftime_now(form) %}}{DATE}{{{{ form }}}}{DATE}{{% endmacro %}}"
    source = (bracket if "strftime_now" in template.source else "") + template.source
    try:
        found = _by_example(ChatTemplate(source, template.bos, template.eos))
    except (FormatError, ValueError):
        return None
    trims = [list(trim) for count in range(len(_ROLES) + 1) for trim in itertools.combinations(_ROLES, count)]
    for system, trim, forget in itertools.product((found["system"], None), trims, _FORGET):
        pieces = {**found, "system": system, "trim": trim, "forget": forget}
        if _exact(pieces, template):
            return pieces
    return None


def _by_example(template: ChatTemplate) -> dict[str, Any]:
    """Cut out of a rendered conversation. ValueError when what is said cannot be found in it."""
    user = {"role": "user", "content": _U}
    talk = [user, {"role": "assistant", "content": _A}, {"role": "user", "content": _V}]
    start, after_user, after_assistant, answer = _cut(template(talk, add_generation_prompt=True), (_U, _A, _V))
    try:
        told = template([{"role": "system", "content": _S}, user], add_generation_prompt=True)
        system = _cut(told, (_S, _U))[:2]
    except (FormatError, ValueError):  # knows no system message
        system = None
    begins = len(answer) if after_user.startswith(answer) else len(after_user)  # no token reaches over this place
    after_user = after_user[:begins] + BREAK + after_user[begins:]
    return {"open": start, "system": system, "user": after_user, "assistant": after_assistant, "answer": answer}


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError("not there exactly once")
        parts.append(part)
    return [*parts, text]


def _exact(pieces: dict[str, Any], template: ChatTemplate) -> bool:
    """Whether the pieces give what the template does, refusals included, with and without a system message."""
    chat = Chat({"chat": pieces, "chat_template": template.source}, None)  # type: ignore[arg-type]
    for turns in _TURNS:
        said = [{"role": _ROLES[1 + i % 2], "content": turn} for i, turn in enumerate(turns)]
        for system in ("", *_SYSTEMS):
            messages = [{"role": "system", "content": system}, *said] if system else said
            try:
                wanted = template(messages, add_generation_prompt=True)
            except FormatError:
                wanted = None
            if system and not pieces["system"]:
                if wanted not in (None, template(said, add_generation_prompt=True)):
                    return False
                continue
            ours = chat.render([m | {"content": chat.said(m["content"], m["role"])} for m in messages])
            if wanted != ours.replace(BREAK, ""):
                return False
    return True
