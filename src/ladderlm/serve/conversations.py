"""Conversations that responses belong to: items in their order, which grow with every answer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence

from ladderlm import store
from ladderlm.errors import NotFound
from ladderlm.serve.responses import fresh
from ladderlm.serve.wire.base import Object


def create(user: str, items: Sequence[Object], metadata: Mapping[str, str] | None) -> Object:
    """A conversation that begins with `items`."""
    id, created, told = fresh("conv"), int(time.time()), dict(metadata or {})
    with store.transaction() as db:
        db.execute("INSERT INTO response_conversations VALUES (?, ?, ?, ?)", (id, user, created, json.dumps(told)))
        _append(db, id, items)
    return _told(id, created, told)


def find(user: str, id: str) -> Object:
    """NotFound where there is none of this owner's."""
    with store.reading() as db:
        return _found(db, user, id)


def change(user: str, id: str, metadata: Mapping[str, str]) -> Object:
    """Other metadata. Raises NotFound."""
    with store.transaction() as db:
        found = _found(db, user, id)
        db.execute("UPDATE response_conversations SET metadata = ? WHERE id = ?", (json.dumps(metadata), id))
    return {**found, "metadata": dict(metadata)}


def forget(user: str, id: str) -> None:
    """Removes a conversation with its items; responses that belonged to it stay. Raises NotFound."""
    with store.transaction() as db:
        _found(db, user, id)
        db.execute("DELETE FROM conversation_items WHERE conversation = ?", (id,))
        db.execute("DELETE FROM response_conversations WHERE id = ?", (id,))


def append(user: str, id: str, items: Sequence[Object]) -> None:
    """Adds items at the end; one whose id is there already stays as it was. Raises NotFound."""
    with store.transaction() as db:
        _found(db, user, id)
        _append(db, id, items)


def items(user: str, id: str) -> list[Object]:
    """All of them, the first first. Raises NotFound."""
    with store.reading() as db:
        _found(db, user, id)
        rows = db.execute("SELECT body FROM conversation_items WHERE conversation = ? ORDER BY number", (id,))
        return [json.loads(row[0]) for row in rows]


def item(user: str, id: str, item: str) -> Object:
    """One of them. Raises NotFound."""
    with store.reading() as db:
        _found(db, user, id)
        query = "SELECT body FROM conversation_items WHERE conversation = ? AND id = ?"
        row = db.execute(query, (id, item)).fetchone()
    if row is None:
        raise NotFound(f"no item {item!r}", where="item")
    found: Object = json.loads(row[0])
    return found


def remove(user: str, id: str, item: str) -> Object:
    """The conversation without that item. Raises NotFound."""
    with store.transaction() as db:
        found = _found(db, user, id)
        if not db.execute("DELETE FROM conversation_items WHERE conversation = ? AND id = ?", (id, item)).rowcount:
            raise NotFound(f"no item {item!r}", where="item")
    return found


def _found(db: sqlite3.Connection, user: str, id: str) -> Object:
    query = "SELECT created, metadata FROM response_conversations WHERE id = ? AND user = ?"
    row = db.execute(query, (id, user)).fetchone()
    if row is None:
        raise NotFound(f"no conversation {id!r}", where="conversation")
    return _told(id, int(row[0]), json.loads(row[1]))


def _told(id: str, created: int, metadata: Mapping[str, str]) -> Object:
    return {"id": id, "object": "conversation", "created_at": created, "metadata": metadata}


def _append(db: sqlite3.Connection, id: str, items: Sequence[Object]) -> None:
    rows = [(id, item["id"], json.dumps(item)) for item in items]
    db.executemany("INSERT OR IGNORE INTO conversation_items (conversation, id, body) VALUES (?, ?, ?)", rows)
