"""/v1/conversations: what responses with a `conversation` go on from, and add to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ladderlm.serve import conversations, responses
from ladderlm.serve.routes.responses import After, Limit, Order, page_of
from ladderlm.serve.server import Caller, Here, Object, Server
from ladderlm.serve.wire.conversations import (
    ConversationBody,
    ConversationChange,
    ConversationDeleted,
    ConversationObject,
    ItemsBody,
    shown,
)
from ladderlm.serve.wire.responses import Item, ItemList

router = APIRouter(prefix="/v1/conversations", tags=["responses"])


@router.post("", responses={200: {"model": ConversationObject}})
async def create_conversation(server: Here, who: Caller, body: ConversationBody | None = None) -> Response:
    """A conversation, with what it begins with."""
    body = body or ConversationBody()
    items = await _items(server, who.user, body.items or ())
    return JSONResponse(await server.call(partial(conversations.create, who.user, items, body.metadata)))


@router.get("/{id}", responses={200: {"model": ConversationObject}})
async def conversation(id: str, server: Here, who: Caller) -> Response:
    """What is known of a conversation."""
    return JSONResponse(await server.call(partial(conversations.find, who.user, id)))


@router.post("/{id}", responses={200: {"model": ConversationObject}})
async def change_conversation(id: str, body: ConversationChange, server: Here, who: Caller) -> Response:
    """Other metadata."""
    return JSONResponse(await server.call(partial(conversations.change, who.user, id, body.metadata or {})))


@router.delete("/{id}", responses={200: {"model": ConversationDeleted}})
async def delete_conversation(id: str, server: Here, who: Caller) -> Response:
    """Forgets a conversation and its items. Responses that were stored stay."""
    await server.call(partial(conversations.forget, who.user, id))
    return JSONResponse({"id": id, "object": "conversation.deleted", "deleted": True})


@router.post("/{id}/items", responses={200: {"model": ItemList}})
async def add_items(id: str, body: ItemsBody, server: Here, who: Caller) -> Response:
    """Puts items at the end."""
    items = await _items(server, who.user, body.items)
    await server.call(partial(conversations.append, who.user, id, items))
    return JSONResponse(page_of(items, len(items), None))


@router.get("/{id}/items", responses={200: {"model": ItemList}})
async def list_items(
    id: str, server: Here, who: Caller, limit: Limit = 20, order: Order = "desc", after: After = None
) -> Response:
    """What was said, the latest first."""
    items = await server.call(partial(conversations.items, who.user, id))
    return JSONResponse(page_of(items if order == "asc" else items[::-1], limit, after))


@router.get("/{id}/items/{item}")
async def item(id: str, item: str, server: Here, who: Caller) -> Response:
    """One thing that was said."""
    return JSONResponse(await server.call(partial(conversations.item, who.user, id, item)))


@router.delete("/{id}/items/{item}", responses={200: {"model": ConversationObject}})
async def delete_item(id: str, item: str, server: Here, who: Caller) -> Response:
    """The conversation goes on without it."""
    return JSONResponse(await server.call(partial(conversations.remove, who.user, id, item)))


async def _items(server: Server, owner: str, given: Sequence[Item]) -> list[Object]:
    items = shown(given)
    if any(item["type"] == "item_reference" for item in items):
        items = await server.call(partial(responses.referred, owner, items))
    return responses.named(items)
