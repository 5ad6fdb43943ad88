"""POST /v1/messages: Anthropic's Messages API."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import AsWhole, Object, See, Wire, blind
from ladderlm.serve.wire.chat import Count, joined
from ladderlm.serve.wire.sampling import DRAWING, MAX_STOPS, Share, Text
from ladderlm.serve.wire.tools import MAX_TOOLS, Offer, chosen, narrowed
from ladderlm.types import Conversation, Message, Part, Reasoning, Sampling, Tool, ToolCall, ToolResult
from ladderlm.types import Text as Said

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


# --- The request --------------------------------------------------------------------------------------------------


class TextBlock(Wire):
    type: Literal["text"]
    text: str


class Base64Source(Wire):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Wire):
    type: Literal["url"]
    url: str


class ImageBlock(Wire):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ThinkingBlock(Wire):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedBlock(Wire):
    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Wire):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Object


class ToolResultBlock(Wire):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = None
    is_error: bool | None = None


UserBlock = Annotated[TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ThinkingBlock | RedactedBlock | ToolUseBlock, Field(discriminator="type")]


class UserTurn(Wire):
    role: Literal["user"]
    content: str | list[UserBlock]


class AssistantTurn(Wire):
    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class CustomTool(Wire):
    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: Object
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.input_schema, bool(self.strict))


class FreeChoice(Wire):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Wire):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Wire):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(Wire):
    format: OutputFormat | None = None


class CountBody(Wire):
    """What the model reads."""

    model: str | None = None
    messages: Annotated[list[Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[FreeChoice | NamedChoice, Field(discriminator="type")] | None = None

    @property
    def offer(self) -> Offer:
        tools = tuple(tool.tool for tool in self.tools or ())
        if isinstance(self.tool_choice, NamedChoice):
            return narrowed(tools, [self.tool_choice.name], required=True)
        kind = self.tool_choice.type if self.tool_choice else "auto"
        return chosen(tools, "required" if kind == "any" else kind)

    def conversation(self, see: See = blind) -> Conversation:
        """The turns. A last turn of the assistant is the beginning of its answer."""
        turns = [Message.of("system", _text(self.system))] if self.system else []
        turns += [message for i, turn in enumerate(self.messages) for message in _turn(turn, f"messages[{i}]", see)]
        messages = joined(tuple(turns))
        if messages[-1].role == "assistant" and not all(isinstance(p, Said) for p in messages[-1].parts):
            raise UsageError("the last message thinks or uses tools", where="messages", cure="add the tool_result")
        return Conversation(messages, self.offer[0])


class MessagesBody(CountBody):
    max_tokens: Annotated[int, Field(ge=1), AsWhole]
    stop_sequences: Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0), AsWhole] | None = None
    output_config: OutputConfig | None = None

    @property
    def drawn_by_model(self) -> bool:
        return all(getattr(self, name, None) is None for name in DRAWING)

    @property
    def sampling(self) -> Sampling:
        told = {name: value for name in ("temperature", "top_p", "top_k") if (value := getattr(self, name)) is not None}
        form = self.output_config.format if self.output_config else None
        return Sampling(
            **told,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
            response_format=None if form is None else {"type": "json_schema", "json_schema": {"schema": form.schema_}},
            tool_choice=self.offer[1],
            parallel_tool_calls=not (self.tool_choice and self.tool_choice.disable_parallel_tool_use),
        )


def _turn(turn: UserTurn | AssistantTurn, where: str, see: See) -> list[Message]:
    """A user's turn with tool results becomes two: the results, then what the user says."""
    if isinstance(turn.content, str):
        return [Message.of(turn.role, turn.content)]
    results: list[Part] = []
    said: list[Part] = []
    for number, block in enumerate(turn.content):
        match block:
            case TextBlock():
                said.append(Said(block.text))
            case ImageBlock():
                said.append(_image(block.source, f"{where}.content[{number}].source", see))
            case ThinkingBlock():
                said.append(Reasoning(block.thinking))
            case ToolUseBlock():
                said.append(ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False)))
            case ToolResultBlock():
                results += _result(block, f"{where}.content[{number}].content", see)
    found = [Message("tool", tuple(results))] if results else []
    return [*found, Message(turn.role, tuple(said))] if said or not results else found


def _result(block: ToolResultBlock, where: str, see: See) -> list[Part]:
    """What a tool says, and then what it shows."""
    content = block.content or ""
    if isinstance(content, str):
        return [ToolResult(block.tool_use_id, content)]
    shown = [
        _image(part.source, f"{where}[{place}].source", see)
        for place, part in enumerate(content)
        if isinstance(part, ImageBlock)
    ]
    return [ToolResult(block.tool_use_id, _text([part for part in content if isinstance(part, TextBlock)])), *shown]


def _image(source: Base64Source | UrlSource, where: str, see: See) -> Part:
    if isinstance(source, UrlSource):
        return see(source.url, f"{where}.url")
    return see(f"data:{source.media_type};base64,{source.data}", f"{where}.data")


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


# --- The answer ---------------------------------------------------------------------------------------------------


class TextSaid(Wire):
    type: Literal["text"]
    text: str


class ThinkingSaid(Wire):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUsed(Wire):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Object


class MessagesUsage(Wire):
    input_tokens: Count
    output_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count


class MessageAnswer(Wire):
    """A whole answer. With `stream` it comes in pieces, as server-sent events."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[TextSaid | ThinkingSaid | ToolUsed, Field(discriminator="type")]]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(Wire):
    input_tokens: Count


class MessagesErrorDetail(Wire):
    type: str
    message: str


class MessagesError(Wire):
    """A refusal, in this API's form."""

    type: Literal["error"]
    error: MessagesErrorDetail


def error_body(message: str, status: int) -> Any:
    """An error as this API tells it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
             429: "rate_limit_error", 504: "timeout_error"}  # fmt: skip
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
