"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import Object, Whole, Wire
from ladderlm.serve.wire.sampling import SamplingFields
from ladderlm.types import Conversation, Message, Sampling

MAX_TOP_LOGPROBS = 20


class TextPart(Wire):
    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemMessage(Wire):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Wire):
    role: Literal["user"]
    content: Content


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: Content
    tool_calls: list[Object] | None = None


AnyMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class ChatBody(SamplingFields):
    model: str | None = None
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    @property
    def sampling(self) -> Sampling:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs: true", where="top_logprobs")
        return self.drawn(max_tokens=self.max_completion_tokens or self.max_tokens, logprobs=logprobs)

    @property
    def conversation(self) -> Conversation:
        """The turns. A last turn of the assistant is the beginning of its answer."""
        for name in ("tools", "functions"):
            if getattr(self, name):
                raise UsageError("this server does not call tools", where=name, cure="leave the field out")
        turns = tuple(_turn(message, f"messages[{i}]") for i, message in enumerate(self.messages))
        if len(turns) > 1 and turns[-1].role == turns[-2].role == "assistant":
            raise UsageError("two assistant messages at the end", where="messages", cure="join them")
        return Conversation(turns)


def _turn(message: SystemMessage | UserMessage | AssistantMessage, where: str) -> Message:
    if isinstance(message, AssistantMessage) and message.tool_calls:
        raise UsageError("this server does not call tools", where=f"{where}.tool_calls")
    role = "system" if message.role == "developer" else message.role
    return Message.of(role, text_of(message.content))


def text_of(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
