"""POST /tokenize and /detokenize, GET /tokenizer_info: a model's tokenizer for those who have not got it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ladderlm.errors import NotFound, UsageError
from ladderlm.serve.server import Here, Object
from ladderlm.serve.wire.tokens import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeChat,
    TokenizerInfo,
    TokenizeText,
)
from ladderlm.types import Chat

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", responses={200: {"model": TokenizeAnswer}})
async def tokenize(body: TokenizeText | TokenizeChat, server: Here) -> Response:
    """Text or a chat to ids. Text gets the document-start token in front unless `add_special_tokens` is false.

    Control tokens that text spells stay text unless `parse_special` is true. A prompt that is nothing but the name of
    one, without special tokens, is that token: so clients look up the end's id.
    """
    name = server.models.resolve(body.model)

    def read(chat: Any) -> list[int]:
        if isinstance(body, TokenizeChat):
            begins = body.add_generation_prompt is not False
            return list(chat.conversation_ids(body.conversation, add_generation_prompt=begins))
        if body.prompt in chat.tokenizer.control and body.add_special_tokens is False:
            return [chat.tokenizer.control[body.prompt]]
        if body.parse_special:
            start = [] if body.add_special_tokens is False else chat.prompt_ids("")
            return [*start, *chat.tokenizer.encode(body.prompt, special=True)]
        plain = body.add_special_tokens is False
        return list(chat.tokenizer.encode(body.prompt) if plain else chat.prompt_ids(body.prompt))

    def work() -> Object:
        with server.models.use(name) as opened:
            chat = _local(opened, name)
            ids = read(chat)
            texts = [chat.tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
            return {
                "count": len(ids),
                "max_model_len": chat.engine.context_length,
                "tokens": ids,
                "token_strs": texts,
            }

    return JSONResponse(await server.call(work))


@router.post("/detokenize", responses={200: {"model": DetokenizeAnswer}})
async def detokenize(body: DetokenizeBody, server: Here) -> Response:
    """Ids to the text they spell; control tokens are named."""
    name = server.models.resolve(body.model)

    def work() -> str:
        with server.models.use(name) as opened:
            tokenizer = _local(opened, name).tokenizer
            if wrong := [i for i in body.tokens if i >= tokenizer.vocab_size]:
                raise NotFound(f"no token {wrong[0]}", where="tokens", cure=f"ids are below {tokenizer.vocab_size}")
            return str(tokenizer.decode(body.tokens, special=True))

    return JSONResponse({"prompt": await server.call(work)})


@router.get("/tokenizer_info", responses={200: {"model": TokenizerInfo}})
async def tokenizer_info(server: Here, model: str | None = None) -> Response:
    """The special tokens and the chat template."""
    name = server.models.resolve(model)

    def work() -> Object:
        with server.models.use(name) as opened:
            chat = _local(opened, name)
            tokenizer, template = chat.tokenizer, chat.files.template

            def text(id: int | None) -> str | None:
                return None if id is None else str(tokenizer.token_text(id))

            return {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": text(tokenizer.bos_id),
                "eos_token": text(tokenizer.eos_id),
                "pad_token": text(tokenizer.pad_id),
                "add_bos_token": tokenizer.document_start_id is not None,
                "chat_template": None if template is None else template.source,
                "model_max_length": chat.engine.context_length,
                "vocab_size": tokenizer.vocab_size,
            }

    return JSONResponse(await server.call(work))


def _local(chat: Chat, name: str) -> Any:
    """A chat that has a tokenizer of its own."""
    if not hasattr(chat, "tokenizer") or not hasattr(chat, "prompt_ids"):
        raise UsageError(f"{name!r} shows no tokenizer", where="model", cure="use a local model")
    return chat
