"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ladderlm.serve.wire.base import Id, Wire
from ladderlm.serve.wire.chat import AnyMessage, ChatBody, Count
from ladderlm.serve.wire.tools import MAX_TOOLS, FunctionTool
from ladderlm.types import Conversation


class TokenizeText(Wire):
    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Wire):
    """The messages of a chat, as the model would read them."""

    model: str | None = None
    messages: Annotated[list[AnyMessage], Field(min_length=1)]
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @property
    def conversation(self) -> Conversation:
        return ChatBody(messages=self.messages, tools=self.tools).conversation()


class TokenizeAnswer(Wire):
    count: Count
    max_model_len: Count
    tokens: list[Id]
    token_strs: list[str] | None


class DetokenizeBody(Wire):
    model: str | None = None
    tokens: list[Id]


class DetokenizeAnswer(Wire):
    prompt: str


class TokenizerInfo(Wire):
    """What a client needs to know of a tokenizer that it has not got."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    add_bos_token: bool
    chat_template: str | None
    model_max_length: Count
    vocab_size: Count
