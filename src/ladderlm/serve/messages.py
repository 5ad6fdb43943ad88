"""Deltas as Anthropic's Messages API tells them: content blocks, and events that build them."""

from __future__ import annotations

import json
import secrets
from typing import Any

from ladderlm.errors import LadderError, outcome
from ladderlm.serve.wire.base import Object
from ladderlm.serve.wire.messages import error_body
from ladderlm.types import Delta, ToolCall, Usage

_REASONS = {"stop": "end_turn", "length": "max_tokens", "cancelled": "max_tokens", "tool_calls": "tool_use"}


class Messaging:
    """One message as it is made. Each method gives the events that tell what it changed."""

    def __init__(self, model: str) -> None:
        self.whole: Object = {
            "id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model,
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(Usage()),
        }  # fmt: skip
        self._open = ""  # the kind of block, or the call's id, that is being said
        self._input = ""  # of a tool, as JSON

    def begin(self) -> list[Object]:
        return [{"type": "message_start", "message": {**self.whole, "content": []}}]

    def add(self, delta: Delta) -> list[Object]:
        events: list[Object] = []
        if delta.usage is not None:
            self.whole["usage"] = _usage(delta.usage)
        if delta.call is not None:
            events = self._call(delta.call)
        elif delta.text and delta.part == "reasoning":
            events = self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._block["thinking"] += delta.text
            events.append(self._piece({"type": "thinking_delta", "thinking": delta.text}))
        elif delta.text:
            events = self._enter("text", {"type": "text", "text": ""})
            self._block["text"] += delta.text
            events.append(self._piece({"type": "text_delta", "text": delta.text}))
        if delta.finish_reason:
            self.whole["stop_reason"] = "stop_sequence" if delta.stopped_by else _REASONS[delta.finish_reason]
            self.whole["stop_sequence"] = delta.stopped_by or None
        return events

    def end(self) -> list[Object]:
        self.whole["stop_reason"] = self.whole["stop_reason"] or "end_turn"
        told = {name: self.whole[name] for name in ("stop_reason", "stop_sequence")}
        return [
            *self._leave(),
            {"type": "message_delta", "delta": told, "usage": self.whole["usage"]},
            {"type": "message_stop"},
        ]

    @staticmethod
    def fail(error: BaseException) -> list[Object]:
        message = str(error) if isinstance(error, LadderError) else "internal error"
        body: Object = error_body(message, outcome(error).http_status)
        return [body]

    def _call(self, call: ToolCall) -> list[Object]:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        events = self._enter(f"call {call.id}", block)
        self._input += call.arguments
        if call.arguments:
            events.append(self._piece({"type": "input_json_delta", "partial_json": call.arguments}))
        return events

    @property
    def _block(self) -> Object:
        block: Object = self.whole["content"][-1]
        return block

    def _enter(self, kind: str, block: Object) -> list[Object]:
        if self._open == kind:
            return []
        events = self._leave()
        self._open = kind
        self.whole["content"].append(block)
        started = {"type": "content_block_start", "index": self._index, "content_block": dict(block)}
        return [*events, started]

    def _leave(self) -> list[Object]:
        if not self._open:
            return []
        if self._block["type"] == "tool_use":
            self._block["input"], self._input = _object(self._input), ""
        self._open = ""
        return [{"type": "content_block_stop", "index": self._index}]

    def _piece(self, delta: Object) -> Object:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    @property
    def _index(self) -> int:
        return len(self.whole["content"]) - 1


def _object(arguments: str) -> Any:
    """A tool's input; one that was cut off in the middle is empty."""
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {}


def _usage(usage: Usage) -> Object:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }
