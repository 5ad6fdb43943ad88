"""The OpenAI wire, seen from the client: our values to request bodies, response chunks to Deltas. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ladderlm.errors import FormatError, UsageError
from ladderlm.types import (
    Audio,
    Candidate,
    Conversation,
    Delta,
    FinishReason,
    Image,
    Message,
    Sampling,
    Text,
    Token,
    Tool,
    ToolCall,
    ToolResult,
    Usage,
)

Json = Mapping[str, Any]
# Ours -> theirs. The first are part of the OpenAI API; the second only travel when set, for servers that know them.
_STANDARD = {"presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "seed": "seed", "n": "n"}
_EXTENDED = {
    "top_k": "top_k",
    "min_p": "min_p",
    "typical": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "min_tokens": "min_tokens",
}
_PLAIN = Sampling()
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


# --- Requests -----------------------------------------------------------------------------------------------------


def sampling_body(sampling: Sampling, limit_name: str) -> dict[str, Any]:
    """The sampling fields that both routes share. temperature and top_p always travel: servers differ in defaults."""
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for ours, theirs in (_STANDARD | _EXTENDED).items():
        if (value := getattr(sampling, ours)) != getattr(_PLAIN, ours):
            body[theirs] = value
    if sampling.mirostat_tau:
        body["mirostat"] = 2
    if sampling.dry_breakers != _PLAIN.dry_breakers:
        body["dry_sequence_breakers"] = list(sampling.dry_breakers)
    if sampling.max_tokens is not None:
        body[limit_name] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.stop_ids:
        body["stop_token_ids"] = list(sampling.stop_ids)
    if sampling.logit_bias:
        body["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias}
    if sampling.response_format:
        body["response_format"] = dict(sampling.response_format)
    return body


def chat_body(
    model: str,
    conversation: Conversation,
    sampling: Sampling,
    limit_name: str,
    priority: int = 0,
    show: Callable[[Image], str] | None = None,
) -> dict[str, Any]:
    """/v1/chat/completions, streamed. Raises UsageError for what that route cannot do.

    `show` gives the URL that an image is sent as, which holds its bytes.
    """
    if sampling.best_of not in (None, sampling.n):
        raise UsageError("a remote chat knows no best_of", where="best_of", cure="leave it out")
    if sampling.prompt_logprobs is not None:
        raise UsageError("a remote chat gives no log-probabilities of the prompt", where="prompt_logprobs")
    body: dict[str, Any] = {"model": model, "messages": _turns(conversation, show)}
    body |= sampling_body(sampling, limit_name) | _priority(priority)
    if sampling.logprobs is not None:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.logprobs
    if conversation.tools:
        body["tools"] = [_tool(tool) for tool in conversation.tools]
        if sampling.tool_choice != "auto":
            body["tool_choice"] = sampling.tool_choice
        if not sampling.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def completion_body(model: str, prompt: str | Sequence[int], sampling: Sampling, priority: int = 0) -> dict[str, Any]:
    """/v1/completions, streamed unless a whole answer is needed (best_of, echoed prompt)."""
    body: dict[str, Any] = {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt)}
    body |= sampling_body(sampling, "max_tokens") | _priority(priority)
    wanted = [k for k in (sampling.logprobs, sampling.prompt_logprobs) if k is not None]
    if wanted:
        body["logprobs"] = max(wanted)
    if sampling.prompt_logprobs is not None:
        body["echo"] = True
    if sampling.best_of is not None:
        body["best_of"] = sampling.best_of
    if sampling.prompt_logprobs is None and sampling.best_of in (None, sampling.n):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _priority(priority: int) -> dict[str, Any]:
    """vLLM's field: its lowest number comes first."""
    return {"priority": -priority} if priority else {}


def _turns(conversation: Conversation, show: Callable[[Image], str] | None) -> list[dict[str, Any]]:
    """The messages. What tools show stands in the user's turn after them, as tools' own can hold text alone."""
    out: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] | None = None  # by the tools just before
    for message in conversation.messages:
        turns = _messages(message, show)
        if shown is not None and message.role == "user":
            said = turns[0]["content"]
            shown += [{"type": "text", "text": said}] if isinstance(said, str) else said
            shown = None
            continue
        out += turns
        shown = (_shown(message, show) or None) if message.role == "tool" and show else None
        if shown is not None:
            out.append({"role": "user", "content": shown})
    return out


def _shown(message: Message, show: Callable[[Image], str]) -> list[dict[str, Any]]:
    """The images of tools' results, each after the id of the call that gave it."""
    out: list[dict[str, Any]] = []
    call = ""
    for part in message.parts:
        if isinstance(part, ToolResult):
            call = part.id
        elif isinstance(part, Image):
            out += [{"type": "text", "text": f"Shown by tool call {call}:"}] if call else []
            out += _content(Message("user", (part,)), show)
            call = ""
    return out


def _messages(message: Message, show: Callable[[Image], str] | None) -> list[dict[str, Any]]:
    where = f"{message.role} message"
    if any(isinstance(p, Audio) for p in message.parts):
        raise UsageError("audio cannot be sent to a remote", where=where, cure="leave it out")
    seen = any(isinstance(p, Image) for p in message.parts)
    if seen and (show is None or message.role not in ("user", "tool")):
        raise UsageError("only users and tools show images to a chat", where=where, cure="leave them out")
    out: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": p.id, "content": p.text} for p in message.parts if isinstance(p, ToolResult)
    ]
    calls = [
        {"id": p.id, "type": "function", "function": {"name": p.name, "arguments": p.arguments}}
        for p in message.parts
        if isinstance(p, ToolCall)
    ]
    if not out or calls or any(isinstance(p, Text) for p in message.parts):
        content = _content(message, show) if seen and show else message.text
        own: dict[str, Any] = {"role": message.role, "content": content}
        out.append(own | {"tool_calls": calls} if calls else own)
    return out


def _content(message: Message, show: Callable[[Image], str]) -> list[dict[str, Any]]:
    """Texts and images in their order; an empty text, which servers refuse beside an image, is left out."""
    out: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text) and part.text:
            out.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            detail = {"detail": part.detail} if part.detail != "auto" else {}
            out.append({"type": "image_url", "image_url": {"url": show(part), **detail}})
    return out


# --- Responses ----------------------------------------------------------------------------------------------------


class Reader:
    """Chunks (or one whole answer) to Deltas. The fragments of a tool call get the id and name of its first."""

    def __init__(self) -> None:
        self._calls: dict[tuple[int, int], ToolCall] = {}
        self.finished: set[int] = set()

    def read(self, chunk: Json) -> list[Delta]:
        """The Deltas of one chunk. Raises FormatError when it is not what the API describes."""
        try:
            deltas = [d for choice in chunk.get("choices") or () for d in self._choice(choice)]
            if usage := chunk.get("usage"):
                deltas.append(Delta(usage=_usage(usage)))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"the server's answer is not in the OpenAI form: {type(error).__name__}") from None
        return deltas

    def _choice(self, choice: Json) -> list[Delta]:
        index = int(choice.get("index") or 0)
        said = choice.get("delta") or choice.get("message") or {}
        thought = said.get("reasoning_content") or said.get("reasoning") or ""
        text = said.get("content") or choice.get("text") or ""
        tokens = tokens_of(choice.get("logprobs"), str(choice.get("text") or ""))
        out: list[Delta] = []
        if thought:
            out.append(Delta(index, "reasoning", str(thought)))
        if text or tokens:
            out.append(Delta(index, "text", str(text), tokens))
        for number, call in enumerate(said.get("tool_calls") or ()):
            out += self._fragment(index, int(call.get("index", number)), call)
        if reason := choice.get("finish_reason"):
            self.finished.add(index)
            out.append(Delta(index, finish_reason=_REASONS.get(str(reason), "stop")))
        return out

    def _fragment(self, index: int, number: int, call: Json) -> list[Delta]:
        """A fragment's Delta. Until the name has come, what there is of the call is kept."""
        known = self._calls.get((index, number), ToolCall("", "", ""))
        function = call.get("function") or {}
        told = known.id and known.name
        name = known.name if told else known.name + (function.get("name") or "")
        id = known.id or call.get("id") or f"call_{index}_{number}"
        arguments = ("" if told else known.arguments) + (function.get("arguments") or "")
        self._calls[index, number] = ToolCall(id, name, arguments) if name else ToolCall("", "", arguments)
        return [Delta(index, "tool_call", call=ToolCall(id, name, arguments))] if name else []


def tokens_of(logprobs: Json | None, text: str = "") -> tuple[Token, ...]:
    """The tokens of a choice, from either of the API's two forms of logprobs. `text` is what they spell together."""
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple(
            _token(t["token"], t["logprob"], _table(t.get("top_logprobs")), t.get("bytes"))
            for t in logprobs["content"] or ()
        )
    texts: list[str] = list(logprobs.get("tokens") or ())
    starts: list[int] = list(logprobs.get("text_offset") or ())
    if text and len(starts) == len(texts) and starts[0] == 0:
        # A token that is a part of a character is told as an escape: the offsets say what it adds to the text.
        texts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    values = logprobs.get("token_logprobs") or [None] * len(texts)
    tops = logprobs.get("top_logprobs") or [None] * len(texts)
    return tuple(_token(text, p, top or {}) for text, p, top in zip(texts, values, tops, strict=True))


def _table(alternatives: Sequence[Json] | None) -> dict[str, float]:
    return {a["token"]: a["logprob"] for a in alternatives or ()}


def _token(text: str, logprob: float | None, top: Mapping[str, float], data: Sequence[int] | None = None) -> Token:
    candidates = sorted((Candidate(None, float(p), str(t)) for t, p in top.items()), key=lambda c: -c.logprob)
    read = None if logprob is None else float(logprob)
    return Token(None, read, tuple(candidates), str(text), tuple(data) if data else tuple(str(text).encode()))


def _usage(usage: Json) -> Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0), int(cached))
