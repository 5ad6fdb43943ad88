"""/v1/conversations: their requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ladderlm.errors import UsageError
from ladderlm.serve.wire.base import Object, Wire
from ladderlm.serve.wire.chat import Count
from ladderlm.serve.wire.responses import MAX_ITEMS, Item, Metadata, plain_items
from ladderlm.types import Image


class ItemsBody(Wire):
    items: Annotated[list[Item], Field(max_length=MAX_ITEMS)]


class ConversationBody(Wire):
    items: Annotated[list[Item], Field(max_length=MAX_ITEMS)] | None = None
    metadata: Metadata | None = None


class ConversationChange(Wire):
    metadata: Metadata | None


class ConversationObject(Wire):
    id: str
    object: Literal["conversation"]
    created_at: Count
    metadata: Metadata


class ConversationDeleted(Wire):
    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


def shown(items: Sequence[Item]) -> list[Object]:
    """The items as plain ones. Raises UsageError for images."""
    return plain_items(items, "items", _unseen)


def _unseen(url: str, where: str) -> Image:
    raise UsageError("an image comes with a response", where=where, cure="send it as input of one")
