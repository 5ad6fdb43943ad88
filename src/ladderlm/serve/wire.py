"""What a request's JSON means. A wrong field is a UsageError whose `where` is the field; unknown fields are ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ladderlm.errors import UsageError
from ladderlm.types import Conversation, Message, Role, Sampling

Body = Mapping[str, Any]
Prompt = str | tuple[int, ...]

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Ours -> the field's name on the wire, and whether it is whole. From typical on, widely used extensions.
_NUMBERS = {
    "temperature": ("temperature", False),
    "top_p": ("top_p", False),
    "presence_penalty": ("presence_penalty", False),
    "frequency_penalty": ("frequency_penalty", False),
    "seed": ("seed", True),
    "n": ("n", True),
    "typical": ("typical_p", False),
    "min_p": ("min_p", False),
    "top_k": ("top_k", True),
    "repetition_penalty": ("repetition_penalty", False),
    "min_tokens": ("min_tokens", True),
    "dry_multiplier": ("dry_multiplier", False),
    "dry_base": ("dry_base", False),
    "dry_allowed_length": ("dry_allowed_length", True),
    "mirostat_eta": ("mirostat_eta", False),
}
DRAWING = ("temperature", "top_p", "top_k", "min_p")
MIROSTAT_TAU = 5.0  # where a client asks for mirostat and no surprise
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 100
MAX_STOPS = 16
MAX_BREAKERS = 64
MAX_PROMPTS = 512
MAX_PRIORITY = 1_000_000  # either way: months ahead of, or behind, those without
MAX_DOCUMENTS = 2048


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str | None
    conversation: Conversation
    sampling: Sampling
    stream: bool
    include_usage: bool
    priority: int
    drawn_by_model: bool  # nothing said about how to draw: the model's own settings hold


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    model: str | None
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    echo: bool
    stream: bool
    include_usage: bool
    priority: int


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    model: str | None
    documents: tuple[Prompt, ...]
    dimensions: int | None
    base64: bool


@dataclass(frozen=True, slots=True)
class NextRequest:
    model: str | None
    prompt: str
    k: int


def parse_json(data: bytes) -> Body:
    """The object in a request's body."""
    try:
        body = json.loads(data, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise UsageError(f"the body must be a JSON object, not {_kind(body)}")
    return body


def chat_request(body: Body) -> ChatRequest:
    """/v1/chat/completions."""
    for name in ("tools", "functions"):
        if body.get(name):
            raise UsageError("this server does not call tools", where=name, cure="leave the field out")
    logprobs = None
    if _flag(body, "logprobs"):
        logprobs = _integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS, default=0)
    elif body.get("top_logprobs"):
        raise UsageError("top_logprobs needs logprobs: true", where="top_logprobs")
    limit = _integer(body, "max_completion_tokens", 1)
    if limit is None:
        limit = _integer(body, "max_tokens", 1)
    return ChatRequest(
        _text(body, "model"),
        conversation(body.get("messages")),
        sampling(body, max_tokens=limit, logprobs=logprobs, response_format=_response_format(body)),
        _flag(body, "stream"),
        _include_usage(body),
        _priority(body),
        all(body.get(name) is None for name in DRAWING),
    )


def completion_request(body: Body) -> CompletionRequest:
    """/v1/completions."""
    if body.get("suffix"):
        raise UsageError("filling in the middle is not supported", where="suffix", cure="leave the field out")
    echo = _flag(body, "echo")
    logprobs = _integer(body, "logprobs", 0, MAX_COMPLETION_LOGPROBS)
    best_of = _integer(body, "best_of", 1, 128)
    stream = _flag(body, "stream")
    if stream and best_of is not None and best_of > (body.get("n") or 1):
        raise UsageError("best_of cannot be streamed", where="best_of", cure="leave it out, or stream: false")
    drawn = sampling(
        body,
        max_tokens=_integer(body, "max_tokens", 0, default=16),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo else None,
        best_of=best_of,
        response_format=_response_format(body),
    )
    asked = prompts(body.get("prompt"))
    if len(asked) * drawn.n > MAX_PROMPTS:
        raise UsageError(f"at most {MAX_PROMPTS} answers in one request", where="prompt", cure="send several requests")
    name, usage, priority = _text(body, "model"), _include_usage(body), _priority(body)
    return CompletionRequest(name, asked, drawn, echo, stream, usage, priority)


def embedding_request(body: Body) -> EmbeddingRequest:
    """/v1/embeddings."""
    form = _text(body, "encoding_format") or "float"
    if form not in ("float", "base64"):
        raise UsageError("must be float or base64", where="encoding_format")
    documents = prompts(body.get("input"), "input")
    if len(documents) > MAX_DOCUMENTS:
        raise UsageError(f"at most {MAX_DOCUMENTS} texts in one request", where="input", cure="send several requests")
    return EmbeddingRequest(_text(body, "model"), documents, _integer(body, "dimensions", 1), form == "base64")


def next_request(body: Body) -> NextRequest:
    """/v1/next: {model, prompt, k}."""
    prompt = _text(body, "prompt")
    if prompt is None:
        raise UsageError("a prompt is needed", where="prompt")
    return NextRequest(_text(body, "model"), prompt, _integer(body, "k", 1, 1000, default=10) or 10)


def conversation(messages: Any) -> Conversation:
    """The turns. A last turn of the assistant is the beginning of its answer."""
    if not isinstance(messages, list) or not messages:
        raise UsageError("must be a list of at least one message", where="messages")
    turns = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    if len(turns) > 1 and turns[-1].role == turns[-2].role == "assistant":
        raise UsageError("two assistant messages at the end", where="messages", cure="join them")
    return Conversation(turns)


def prompts(value: Any, where: str = "prompt") -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise UsageError("must be a string, a list of token ids, or a list of these", where=where)
    if all(_is_id(v) for v in value):
        return (tuple(value),)
    found: list[Prompt] = []
    for i, item in enumerate(value):
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list) and item and all(_is_id(v) for v in item):
            found.append(tuple(item))
        else:
            raise UsageError(f"must be a string or token ids, not {_kind(item)}", where=f"{where}[{i}]")
    return tuple(found)


def sampling(body: Body, **settled: Any) -> Sampling:
    """The sampling fields that both routes share; `settled` ones are taken as they are."""
    values: dict[str, Any] = {}
    for ours, (name, whole) in _NUMBERS.items():
        value = _integer(body, name) if whole else _number(body, name)
        if value is not None:
            values[ours] = value
    # Clients of other servers send -1 for "no limit".
    if values.get("top_k") == -1:
        values["top_k"] = 0
    if "seed" in values:
        values["seed"] %= 2**63
    values["mirostat_tau"] = _mirostat_tau(body)
    if body.get("dry_sequence_breakers") is not None:
        values["dry_breakers"] = _strings(body["dry_sequence_breakers"], "dry_sequence_breakers", MAX_BREAKERS)
    values["stop"] = _stop(body.get("stop"))
    values["stop_ids"] = _ids(body.get("stop_token_ids"), "stop_token_ids")
    values["logit_bias"] = _logit_bias(body.get("logit_bias"))
    return Sampling(**values, **settled)


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise UsageError(f"must be an object, not {_kind(message)}", where=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise UsageError(f"unknown role {role!r}", where=f"{where}.role", cure=f"one of {known}")
    if message.get("tool_calls"):
        raise UsageError("this server does not call tools", where=f"{where}.tool_calls")
    return Message.of(ROLES[role], _content(message.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    """A message's text: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"must be a string or a list of parts, not {_kind(content)}", where=where)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise UsageError(f"only text parts are read, not {kind!r}", where=f"{where}[{i}]")
        if not isinstance(part.get("text"), str):
            raise UsageError("must be a string", where=f"{where}[{i}].text")
        texts.append(part["text"])
    return "".join(texts)


def _response_format(body: Body) -> Mapping[str, Any] | None:
    """The answer's form: of the OpenAI API, a regex, or a grammar, which may also stand by itself."""
    value = body.get("response_format")
    if value is None:
        grammar = _text(body, "grammar")
        return {"type": "grammar", "grammar": grammar} if grammar else None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return value
    if kind == "json_schema":
        schema = value.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise UsageError("must hold an object `schema`", where="response_format.json_schema")
        return value
    if kind in ("regex", "grammar"):
        if not isinstance(value.get(kind), str):
            raise UsageError(f"must hold a string `{kind}`", where="response_format")
        return value
    raise UsageError("type must be text, json_object, json_schema, regex or grammar", where="response_format")


def _include_usage(body: Body) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise UsageError(f"must be an object, not {_kind(options)}", where="stream_options")
    return _flag(options, "include_usage", "stream_options.")


def _priority(body: Body) -> int:
    """Ours, of which the highest goes first. On the wire, as vLLM has it, the lowest does."""
    return -(_integer(body, "priority", -MAX_PRIORITY, MAX_PRIORITY) or 0)


def _stop(value: Any) -> tuple[str, ...]:
    return () if value is None else _strings([value] if isinstance(value, str) else value, "stop", MAX_STOPS)


def _strings(value: Any, where: str, most: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(s, str) for s in value):
        raise UsageError("must be a list of strings", where=where)
    if len(value) > most:
        raise UsageError(f"at most {most} strings", where=where)
    return tuple(value)


def _mirostat_tau(body: Body) -> float:
    """The surprise to hold; 0 where mirostat is off. Its switch is called `mirostat` or `mirostat_mode`."""
    name = "mirostat_mode" if body.get("mirostat_mode") is not None else "mirostat"
    mode, tau = _integer(body, name, 0, 2), _number(body, "mirostat_tau")
    if mode == 1:
        raise UsageError("only version 2 of mirostat is known", where=name, cure="send 2, or 0 for none")
    return 0.0 if not mode else MIROSTAT_TAU if tau is None else tau


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(_is_id(v) for v in value):
        raise UsageError("must be a list of token ids", where=where)
    return tuple(value)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise UsageError(f"must be an object of token id to bias, not {_kind(value)}", where="logit_bias")
    pairs = []
    for key in value:
        if not (key.isascii() and key.isdigit()):
            raise UsageError(f"{key!r} is not a token id", where="logit_bias")
        bias = _number(value, key, where="logit_bias.")
        if bias is None or not -100 <= bias <= 100:
            raise UsageError("a bias lies between -100 and 100", where=f"logit_bias.{key}")
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"must be a string, not {_kind(value)}", where=name)
    return value


def _flag(body: Body, name: str, where: str = "") -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"must be true or false, not {_kind(value)}", where=where + name)
    return bool(value)


def _number(body: Body, name: str, where: str = "") -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"must be a number, not {_kind(value)}", where=where + name)
    if not math.isfinite(value):
        raise UsageError("must be finite", where=where + name)
    return value


def _integer(
    body: Body, name: str, low: int | None = None, high: int | None = None, default: int | None = None
) -> int | None:
    value = _number(body, name)
    if value is None:
        return default
    if value != int(value):
        raise UsageError("must be a whole number", where=f"{name}={value}")
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"must be {span}", where=f"{name}={value}")
    return int(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a flag", type(None): "null"}
    return names.get(type(value), "a number")


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
