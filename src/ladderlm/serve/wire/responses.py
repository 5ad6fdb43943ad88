"""/v1/responses: the Responses API, as far as Open Responses describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import AsWhole, Detail, Object, Ranked, See, Whole, Wire, blind
from ladderlm.serve.wire.chat import MAX_TOP_LOGPROBS, AlternativeLogprob, Count
from ladderlm.serve.wire.sampling import DRAWING, Share
from ladderlm.serve.wire.tools import MAX_TOOLS, Function, Named, Offer, chosen, narrowed
from ladderlm.types import Sampling

LOGPROBS = "message.output_text.logprobs"
MAX_ITEMS = 4096
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Phase = Literal["commentary", "final_answer"]


class _Open(Wire):
    """What is sent back as it came keeps fields that are not ours."""

    model_config = ConfigDict(extra="allow")


# --- The request --------------------------------------------------------------------------------------------------


class InputText(Wire):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


class Refusal(Wire):
    type: Literal["refusal"]
    refusal: str


class InputImage(Wire):
    """A data: URL in base64; an http(s) one where the server fetches images."""

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None


InputPart = Annotated[InputText | InputImage | Refusal, Field(discriminator="type")]


class MessageItem(Wire):
    type: Literal["message"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]
    status: ItemStatus | None = None
    phase: Phase | None = None


class FunctionCallItem(Wire):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str
    status: ItemStatus | None = None


class FunctionOutputItem(Wire):
    type: Literal["function_call_output"]
    id: str | None = None
    call_id: str
    output: str | list[InputPart]
    status: ItemStatus | None = None


class ReasoningItem(Wire):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[InputText]
    content: list[InputText] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class ItemReference(Wire):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] | None = "item_reference"
    id: str


class CompactionItem(Wire):
    """What /v1/responses/compact made of what was said before."""

    type: Literal["compaction"]
    id: str | None = None
    encrypted_content: str


def _kind(item: Any) -> Any:
    if not isinstance(item, dict):
        return getattr(item, "type", None) or "item_reference"
    return item.get("type") or ("message" if "role" in item or "content" in item else "item_reference")


class _Told:
    """A message with an id fits a reference too, so that in the schema they are any of these, not one of them."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> Object:
        schema = handler(core)
        return {"anyOf": schema.pop("oneOf"), **schema}


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _kind,
        custom_error_type="item_kind",
        custom_error_message="not a message, function_call, function_call_output, reasoning, compaction or "
        "item_reference item",
    ),
    _Told(),
]


class ResponseFunction(Function):
    type: Literal["function"]


class NamedTool(Named):
    type: Literal["function"]


class AllowedTools(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


Choice = Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    type: Literal["json_object"]


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    name: str
    schema_: Object = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(Wire):
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Wire):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


Metadata = Annotated[dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
                     Field(max_length=16)]  # fmt: skip


class ReadBody(Wire):
    """What was said."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(max_length=MAX_ITEMS)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None

    def items(self, see: See = blind) -> list[Object]:
        """The input as plain items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return plain_items(self.input or (), "input", see)


def plain_items(items: Sequence[Item], where: str, see: See) -> list[Object]:
    """Items of a request as plain ones; of an image, what is known of it and not what it shows."""
    plain = [{"type": "item_reference"} | item.model_dump(exclude_none=True) for item in items]
    for number, item in enumerate(plain):
        said = "output" if item["type"] == "function_call_output" else "content"
        if item["type"] in ("message", "function_call_output") and isinstance(item[said], list):
            shows = item.get("role", "user") == "user"
            item[said] = [
                _seen(part, shows, f"{where}[{number}].{said}[{place}]", see) for place, part in enumerate(item[said])
            ]
    return plain


class CompactBody(ReadBody, Ranked):
    """A conversation to be told in short."""


class ConversationReference(Wire):
    id: str


class InputBody(ReadBody):
    """What the model reads."""

    conversation: str | ConversationReference | None = None
    tools: Annotated[list[ResponseFunction], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def conversation_id(self) -> str | None:
        """Raises UsageError where a response before is named too."""
        given = self.conversation
        if given is not None and self.previous_response_id is not None:
            raise UsageError("give one of the two", where="conversation", cure="leave out previous_response_id")
        return given.id if isinstance(given, ConversationReference) else given

    @property
    def offer(self) -> Offer:
        tools = tuple(tool.tool for tool in self.tools or ())
        if isinstance(self.tool_choice, NamedTool):
            return narrowed(tools, [self.tool_choice.name], required=True)
        if isinstance(self.tool_choice, AllowedTools):
            names = [tool.name for tool in self.tool_choice.tools]
            return narrowed(tools, names, required=self.tool_choice.mode == "required")
        return chosen(tools, self.tool_choice or "auto")


def _seen(part: Object, shows: bool, where: str, see: See) -> Object:
    """An image as the part that is kept; other parts as they are."""
    if part["type"] != "input_image":
        return part
    if not shows:
        raise UsageError("only users and tools show images", where=where)
    image = see(part["image_url"], f"{where}.image_url")
    known = {"sha256": image.sha256, "media_type": image.media_type}
    return {"type": "input_image", "detail": part.get("detail", "auto"), "image_url": None, **known}


class ResponseBody(InputBody, Ranked):
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    max_output_tokens: Annotated[int, Field(ge=1), AsWhole] | None = None
    max_tool_calls: Annotated[int, Field(ge=1), AsWhole] | None = None
    generate: bool | None = Field(default=None, description="false: only read, so that the next response begins sooner")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), AsWhole] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None

    @property
    def kept(self) -> bool:
        return self.store is not False

    @property
    def logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def drawn_by_model(self) -> bool:
        return all(getattr(self, name, None) is None for name in DRAWING)

    @property
    def sampling(self) -> Sampling:
        if self.background and (self.stream or not self.kept):
            cure = "leave out stream, and store: false"
            raise UsageError("what runs in the background is fetched later", where="background", cure=cure)
        told = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        values: dict[str, Any] = {name: value for name in told if (value := getattr(self, name)) is not None}
        return Sampling(
            **values,
            max_tokens=0 if self.generate is False else self.max_output_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=self._form,
            tool_choice=self.offer[1],
            parallel_tool_calls=self.parallel_tool_calls is not False and self.max_tool_calls != 1,
        )

    @property
    def _form(self) -> Object | None:
        form = self.text.format if self.text else None
        if isinstance(form, JsonSchemaFormat):
            return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_}}
        return {"type": "json_object"} if isinstance(form, JsonObjectFormat) else None


# --- The answer ---------------------------------------------------------------------------------------------------


class TokenLogprob(Wire):
    token: str
    logprob: float
    bytes: list[Whole]
    top_logprobs: list[AlternativeLogprob]


class OutputText(Wire):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class ReasoningText(Wire):
    type: Literal["reasoning_text"]
    text: str


class OutputMessage(Wire):
    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Wire):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class OutputReasoning(Wire):
    type: Literal["reasoning"]
    id: str
    summary: list[Any]
    content: list[ReasoningText]
    status: ItemStatus


class CachedTokens(Wire):
    cached_tokens: Count
    cache_write_tokens: Count


class ReasoningTokens(Wire):
    reasoning_tokens: Count


class ResponseUsage(Wire):
    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class Incomplete(Wire):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(Wire):
    code: str
    message: str


class ResponseAnswer(_Open):
    """A response. With `stream` it comes as server-sent events, numbered, the last of which holds all of it."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Status
    error: ResponseError | None
    incomplete_details: Incomplete | None
    model: str
    output: list[Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]]
    previous_response_id: str | None
    conversation: ConversationReference | None = None
    instructions: str | None
    metadata: dict[str, str]
    usage: ResponseUsage | None


class OutputCompaction(Wire):
    type: Literal["compaction"]
    id: str
    encrypted_content: str


class Compacted(Wire):
    """`output` stands for all that was said, in the input of what follows."""

    id: str
    object: Literal["response.compaction"]
    created_at: Count
    output: list[OutputCompaction]
    usage: ResponseUsage


class Deleted(Wire):
    id: str
    object: Literal["response.deleted"]
    deleted: Literal[True]


class ItemList(Wire):
    object: Literal["list"]
    data: list[Object]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(Wire):
    object: Literal["response.input_tokens"]
    input_tokens: Count
