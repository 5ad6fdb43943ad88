"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import Id, Wire
from ladderlm.serve.wire.chat import AnyMessage, ChatBody, Count
from ladderlm.serve.wire.tools import FunctionTool
from ladderlm.types import Conversation


class TokenizeBody(Wire):
    """Text, or the messages of a chat as the model would read them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[AnyMessage], Field(min_length=1)] | None = None
    tools: list[FunctionTool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @property
    def conversation(self) -> Conversation | None:
        if (self.prompt is None) == (self.messages is None):
            raise UsageError("either a prompt or messages", where="prompt")
        if self.messages is None:
            return None
        return ChatBody(messages=self.messages, tools=self.tools).conversation


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
