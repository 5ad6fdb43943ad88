"""Deltas and Completions in the OpenAI API's JSON, whole and in chunks."""

from __future__ import annotations

import base64
import codecs
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ladderlm.errors import AuthError, ContextOverflow, LadderError, NotFound, UsageError, outcome
from ladderlm.types import Candidate, Choice, Completion, Delta, FinishReason, FloatArray, Token, ToolCall, Usage

# A log-probability on the wire is finite (JSON has no -inf); OpenAI's own floor.
FLOOR = -9999.0


def error_body(error: BaseException) -> dict[str, Any]:
    """The error object that clients parse. What is not ours shows nothing of itself."""
    message = str(error) if isinstance(error, LadderError) else "internal error"
    code: str | None = None
    param: str | None = None
    if isinstance(error, UsageError) and error.where:
        param = error.where.split("=")[0]
    elif isinstance(error, NotFound) and error.where == "model":
        param, code = "model", "model_not_found"
    elif isinstance(error, NotFound) and error.where == "previous_response_id":
        param, code = error.where, "previous_response_not_found"
    elif isinstance(error, ContextOverflow):
        code = "context_length_exceeded"
    elif isinstance(error, AuthError):
        code = "invalid_api_key"
    return {"error": {"message": message, "type": outcome(error).wire_type, "param": param, "code": code}}


def usage_body(usages: Iterable[Usage]) -> dict[str, Any]:
    """The sum over the prompts of one request."""
    usages = list(usages)
    prompt = sum(u.prompt_tokens for u in usages)
    answer = sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in usages)},
    }


def vectors_body(name: str, vectors_ND: FloatArray, tokens: int, *, packed: bool) -> dict[str, Any]:
    """/v1/embeddings; `packed`: each vector as base64 of little-endian float32."""
    rows: list[Any] = vectors_ND.tolist()
    if packed:
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors_ND.astype("<f4")]
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    return {
        "object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip


def table(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Rows of a next-token table."""
    return [
        {"id": c.id, "text": c.text, "logprob": _finite(c.logprob), "prob": math.exp(c.logprob)} for c in candidates
    ]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of one answer share."""

    kind: str
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind.startswith("chat") else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage,
        }


# --- Chat ---------------------------------------------------------------------------------------------------------


def chat_answer(envelope: Envelope, completion: Completion, logprobs: bool) -> dict[str, Any]:
    choices = [
        {
            "index": choice.index,
            "message": _message(choice),
            "logprobs": chat_logprobs(choice.tokens) if logprobs else None,
            "finish_reason": _finish(choice.finish_reason) or "stop",
        }
        for choice in completion.choices
    ]
    return envelope.of(choices, usage_body([completion.usage]))


def chat_start(envelope: Envelope, n: int) -> Iterator[dict[str, Any]]:
    """The first chunk of every choice: who speaks."""
    for index in range(n):
        yield envelope.of([_chunk(index, {"role": "assistant", "content": ""})])


class ChatChunks:
    """One stream's Deltas as chunks: a tool call's id and name go out once, then pieces of its arguments."""

    def __init__(self, envelope: Envelope, logprobs: bool) -> None:
        self._envelope, self._logprobs = envelope, logprobs
        self._calls: defaultdict[int, list[str]] = defaultdict(list)  # of each choice, the ids

    def of(self, delta: Delta) -> dict[str, Any] | None:
        """None for a Delta that says nothing."""
        if not (delta.text or delta.tokens or delta.finish_reason or delta.call):
            return None
        said: dict[str, Any] = {}
        if delta.call is not None:
            said = {"tool_calls": [self._call(delta.index, delta.call)]}
        elif delta.text or (self._logprobs and delta.tokens):
            said = {"reasoning_content" if delta.part == "reasoning" else "content": delta.text}
        chunk = _chunk(delta.index, said, _finish(delta.finish_reason))
        if self._logprobs and delta.tokens:
            chunk["logprobs"] = chat_logprobs(delta.tokens)
        return self._envelope.of([chunk])

    def _call(self, choice: int, call: ToolCall) -> dict[str, Any]:
        known = self._calls[choice]
        if call.id in known:
            return {"index": known.index(call.id), "function": {"arguments": call.arguments}}
        known.append(call.id)
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": len(known) - 1, "id": call.id, "type": "function", "function": function}


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """One entry per token, with the likeliest alternatives."""
    return {
        "content": [
            {
                "token": token.text,
                "logprob": _finite(token.logprob),
                "bytes": list(token.data) or _bytes(token.text),
                "top_logprobs": [
                    {"token": c.text, "logprob": _finite(c.logprob), "bytes": _bytes(c.text)} for c in token.top
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _message(choice: Choice) -> dict[str, Any]:
    content = choice.text or (None if choice.tool_calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in choice.tool_calls
        ]
    return message


def _chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


# --- Raw completions ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Offsets:
    """Where each token begins in a choice's text; a character may be spread over several tokens."""

    at: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), repr=False
    )

    def add(self, tokens: Sequence[Token]) -> list[int]:
        found = []
        for token in tokens:
            found.append(self.at)
            self.at += len(self._decoder.decode(bytes(token.data) or token.text.encode()))
        return found


def completion_choice(
    index: int, text: str, tokens: Sequence[Token], finish: FinishReason | None, offsets: Offsets | None
) -> dict[str, Any]:
    """A choice, or a chunk of one. Without `offsets` no logprobs were asked for."""
    logprobs = completion_logprobs(tokens, offsets) if offsets is not None else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": _finish(finish)}


def completion_logprobs(tokens: Sequence[Token], offsets: Offsets) -> dict[str, Any]:
    """The older API's four parallel lists; the first token of a document has no probability.

    A chosen token is always among its own alternatives, with the very same number: harnesses tell a greedy choice
    by comparing it with the largest.
    """
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [None if t.logprob is None else _finite(t.logprob) for t in tokens],
        "top_logprobs": [None if t.logprob is None else _alternatives(t) for t in tokens],
        "text_offset": offsets.add(tokens),
    }


def _alternatives(token: Token) -> dict[str, float]:
    # Likeliest first, so of two tokens that read alike (both part of a character) the likelier keeps its place.
    found: dict[str, float] = {}
    for candidate in token.top:
        found.setdefault(candidate.text, _finite(candidate.logprob))
    if token.logprob is not None:
        found.setdefault(token.text, _finite(token.logprob))
    return found


def _finish(reason: FinishReason | None) -> str | None:
    # The wire has no word for an answer that the server broke off.
    return "length" if reason == "cancelled" else reason


def _finite(logprob: float | None) -> float:
    return FLOOR if logprob is None else max(float(logprob), FLOOR)


def _bytes(text: str) -> list[int] | None:
    """The text's bytes, unless it is part of a character."""
    return None if "\ufffd" in text else list(text.encode())
