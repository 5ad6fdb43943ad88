"""/v1/chats, /v1/presets, /v1/votes: the page's history, kept on the server for whoever asks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ladderlm.serve import chats
from ladderlm.serve.server import Caller
from ladderlm.serve.wire.chats import (
    ChatFields,
    ChatPatch,
    Id,
    ImportBody,
    MessageBody,
    PresetBody,
    VoteBody,
    plain,
)

router = APIRouter(prefix="/v1", tags=["history"])
Limit = Annotated[int, Query(ge=1, le=chats.MOST)]


async def _owner(who: Caller) -> str:
    return who.user


Owner = Annotated[str, Depends(_owner)]


# Handlers that are not async run in threads of their own: the history never waits behind answers in progress.


@router.get("/chats")
def list_chats(owner: Owner, limit: Limit = 50, before: float | None = None) -> Response:
    """Chats, the latest first."""
    found = chats.list_chats(owner, limit=limit + 1, before=before)
    return JSONResponse({"object": "list", "data": found[:limit], "has_more": len(found) > limit})


@router.post("/chats")
def create_chat(body: ChatFields, owner: Owner) -> Response:
    """A new, empty chat."""
    return JSONResponse(chats.create_chat(owner, plain(body)))


@router.get("/chats/search")
def search_chats(owner: Owner, q: Annotated[str, Query(max_length=500)], limit: Limit = 30) -> Response:
    """Chats that hold the words, with an excerpt each."""
    return JSONResponse({"object": "list", "data": chats.search(owner, q, limit=limit)})


@router.get("/chats/export")
def export_chats(owner: Owner, chat: Id | None = None) -> Response:
    """All chats, or one, with sampling, timings and tokens, as one JSON file."""
    if chat:
        chats.get_chat(owner, chat)

    def write() -> Iterator[str]:
        head = {"object": "ladderlm.chats", "format": chats.FORMAT, "exported": time.time()}
        yield json.dumps(head)[:-1] + ', "chats": ['
        for number, found in enumerate(chats.export(owner, [chat] if chat else None)):
            yield (",\n" if number else "\n") + json.dumps(found, ensure_ascii=False)
        yield "\n]}\n"

    return StreamingResponse(write(), media_type="application/json", headers=_file("chats.json"))


@router.post("/chats/import")
def import_chats(body: ImportBody, owner: Owner) -> Response:
    """Adds exported chats."""
    return JSONResponse({"object": "chats.imported", "chats": chats.import_chats(owner, plain(body)["chats"])})


@router.get("/chats/{chat}")
def get_chat(chat: Id, owner: Owner) -> Response:
    """One chat, without its messages."""
    return JSONResponse(chats.get_chat(owner, chat))


@router.patch("/chats/{chat}")
def update_chat(chat: Id, body: ChatPatch, owner: Owner) -> Response:
    """Title, folder, system prompt, settings, or the branch that is shown."""
    return JSONResponse(chats.update_chat(owner, chat, plain(body)))


@router.delete("/chats/{chat}")
def delete_chat(chat: Id, owner: Owner) -> Response:
    """The chat and all its messages."""
    chats.delete_chat(owner, chat)
    return JSONResponse({"id": chat, "object": "chat.deleted", "deleted": True})


@router.get("/chats/{chat}/messages")
def list_messages(chat: Id, owner: Owner, limit: Limit = 100, before: Id | None = None) -> Response:
    """The branch that is shown, from its end upwards."""
    found, more = chats.list_messages(owner, chat, limit=limit, before=before)
    return JSONResponse({"object": "list", "data": found, "has_more": more})


@router.post("/chats/{chat}/messages")
def put_message(chat: Id, body: MessageBody, owner: Owner) -> Response:
    """Adds a message under its parent, or replaces the text of one whose id is known."""
    return JSONResponse(chats.put_message(owner, chat, plain(body)))


@router.get("/chats/{chat}/messages/{message}/tokens")
def message_tokens(chat: Id, message: Id, owner: Owner) -> Response:
    """The kept tokens of an answer, with their probabilities and alternatives."""
    return JSONResponse({"object": "message.tokens", "tokens": chats.tokens_of(owner, chat, message)})


@router.get("/presets")
def list_presets(owner: Owner) -> Response:
    """Kept system prompts and settings."""
    return JSONResponse({"object": "list", "data": chats.list_presets(owner)})


@router.post("/presets")
def put_preset(body: PresetBody, owner: Owner) -> Response:
    """Keeps a preset under its name."""
    fields = plain(body)
    return JSONResponse(chats.put_preset(owner, fields.pop("name"), fields))


@router.delete("/presets/{name}")
def delete_preset(name: str, owner: Owner) -> Response:
    """Forgets a preset."""
    chats.delete_preset(owner, name)
    return JSONResponse({"name": name, "object": "preset.deleted", "deleted": True})


@router.post("/votes")
def add_vote(body: VoteBody, owner: Owner) -> Response:
    """Which of several answers was best, and how it should have been."""
    return JSONResponse(chats.add_vote(owner, plain(body)))


@router.get("/votes")
def list_votes(owner: Owner) -> Response:
    """All votes."""
    return JSONResponse({"object": "list", "data": chats.list_votes(owner)})


@router.get("/votes/records", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
def vote_records(owner: Owner, kind: Literal["preference", "sft"] = "preference") -> Response:
    """The votes as records to train on: pairs for `ladderlm align`, or conversations for `ladderlm finetune`."""
    votes = chats.list_votes(owner)
    records = chats.preference_records(votes) if kind == "preference" else chats.sft_records(votes)
    lines = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records)
    return Response("".join(lines), media_type="application/jsonl", headers=_file(f"{kind}.jsonl"))


def _file(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}
