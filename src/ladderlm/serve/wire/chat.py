"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import AsWhole, Detail, Object, See, Whole, Wire, blind
from ladderlm.serve.wire.sampling import SamplingFields
from ladderlm.serve.wire.tools import MAX_TOOLS, Call, FunctionTool, Offer, ToolChoice, offer
from ladderlm.types import Conversation, Image, Message, Part, Reasoning, Sampling, Text, ToolCall, ToolResult

MAX_TOP_LOGPROBS = 20
Count = Annotated[int, Field(ge=0), AsWhole]
Finish = Literal["stop", "length", "tool_calls"]


# --- The request --------------------------------------------------------------------------------------------------


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageAddress(Wire):
    """A data: URL in base64; an http(s) one where the server fetches images."""

    url: str
    detail: Detail | None = None


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageAddress


Content = str | list[TextPart]
Shown = str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Wire):
    role: Literal["user"]
    content: Shown


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class ToolMessage(Wire):
    role: Literal["tool"]
    tool_call_id: str
    content: Shown


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatBody(SamplingFields):
    model: str | None = None
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1), AsWhole] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), AsWhole] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), AsWhole] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None

    @property
    def sampling(self) -> Sampling:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs: true", where="top_logprobs")
        return self.drawn(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=logprobs,
            tool_choice=self._offer[1],
            parallel_tool_calls=self.parallel_tool_calls is not False,
        )

    def conversation(self, see: See = blind) -> Conversation:
        """The turns. A last turn of the assistant is the beginning of its answer."""
        if self.functions:
            raise UsageError("functions are not known here", where="functions", cure="use tools")
        turns = tuple(_turn(message, f"messages[{i}]", see) for i, message in enumerate(self.messages))
        return Conversation(checked(joined(turns)), self._offer[0])

    @property
    def _offer(self) -> Offer:
        return offer(self.tools, self.tool_choice)


def checked(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns of a conversation that can be answered."""
    if len(turns) > 1 and turns[-1].role == turns[-2].role == "assistant":
        raise UsageError("two assistant messages at the end", where="messages", cure="join them")
    if turns and turns[-1].role == "assistant" and any(isinstance(p, ToolCall) for p in turns[-1].parts):
        raise UsageError("the last message calls tools", where="messages", cure="add the results")
    return turns


def joined(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Results that follow each other as one turn."""
    out: list[Message] = []
    for turn in turns:
        if out and turn.role == out[-1].role == "tool":
            out[-1] = dataclasses.replace(out[-1], parts=out[-1].parts + turn.parts)
        else:
            out.append(turn)
    return tuple(out)


def _turn(message: SystemMessage | UserMessage | AssistantMessage | ToolMessage, where: str, see: See) -> Message:
    if isinstance(message, ToolMessage):
        told = _shown(message.content, where, see)
        said = "".join(part.text for part in told if isinstance(part, Text))
        return Message("tool", (ToolResult(message.tool_call_id, said), *(p for p in told if isinstance(p, Image))))
    if isinstance(message, AssistantMessage):
        if message.content is None and not message.tool_calls:
            raise UsageError("content is missing", where=f"{where}.content")
        parts: list[Part] = [Reasoning(message.reasoning_content)] if message.reasoning_content else []
        if message.content is not None:
            parts.append(Text(text_of(message.content)))
        parts += [ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ()]
        return Message("assistant", tuple(parts))
    if isinstance(message, UserMessage):
        return Message("user", _shown(message.content, where, see))
    return Message.of("system", text_of(message.content))


def _shown(content: Shown, where: str, see: See) -> tuple[Part, ...]:
    """What a user says and shows, in its order; what is only said is one text."""
    if isinstance(content, str) or not any(isinstance(part, ImagePart) for part in content):
        return (Text(content if isinstance(content, str) else "".join(p.text for p in content if p.type == "text")),)
    parts: list[Part] = []
    for number, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append(Text(part.text))
        else:
            image = see(part.image_url.url, f"{where}.content[{number}].image_url.url")
            parts.append(dataclasses.replace(image, detail=part.image_url.detail or "auto"))
    return tuple(parts)


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


# --- The answer ---------------------------------------------------------------------------------------------------


class AlternativeLogprob(Wire):
    token: str
    logprob: float
    bytes: list[Whole] | None


class TokenLogprob(AlternativeLogprob):
    top_logprobs: list[AlternativeLogprob]


class ChatLogprobs(Wire):
    content: list[TokenLogprob]
    refusal: None


class CachedTokens(Wire):
    cached_tokens: Count


class UsageAnswer(Wire):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class AnswerMessage(Wire):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Wire):
    index: Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatAnswer(Wire):
    """A whole answer. With `stream` it comes in pieces, as server-sent events."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer | None


_EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
STREAMED: Object = {"text/event-stream": {"schema": _EVENT}}  # the other form of such an answer
