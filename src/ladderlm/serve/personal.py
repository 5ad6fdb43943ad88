"""All that is kept of one user: given out, or removed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ladderlm import store
from ladderlm.errors import Forbidden
from ladderlm.serve import accounts, files, jobs
from ladderlm.serve.accounts import EVERYBODY, LOCAL, User, Who

# What belongs to a user, by table: each has a column `user`. What belongs to that: table, column, the table it is of.
TABLES = ("requests", "usage", "files", "batches", "jobs", "chats", "presets", "votes", "responses",
          "response_conversations")  # fmt: skip
PARTS = (
    ("batch_answers", "batch", "batches"),
    ("job_events", "job", "jobs"),
    ("message_tokens", "chat", "chats"),
    ("messages", "chat", "chats"),
    ("conversation_items", "conversation", "response_conversations"),
)


def export(user: str, by: Who = EVERYBODY) -> Iterator[Mapping[str, Any]]:
    """Row by row: {"table": ..., fields}. Never a key's hash. The contents of files are fetched as files."""
    found = accounts.find_user(user)
    accounts.note(by, "export user", found.id)
    return _rows(found)


def _rows(user: User) -> Iterator[Mapping[str, Any]]:
    yield {"table": "users", **user.to_dict()}
    for key in accounts.list_keys(user.id):
        yield {"table": "keys", "prefix": key.prefix, **key.to_dict()}
    with store.reading() as db:
        for table in TABLES:
            for row in db.execute(f"SELECT * FROM {table} WHERE user = ?", (user.id,)):  # noqa: S608
                yield {"table": table, **dict(row)}
        for table, column, parent in PARTS:
            query = f"SELECT * FROM {table} WHERE {column} IN (SELECT id FROM {parent} WHERE user = ?)"  # noqa: S608
            for row in db.execute(query, (user.id,)):
                yield {"table": table, **dict(row)}


def erase(user: str, by: Who = EVERYBODY) -> dict[str, int]:
    """Removes rows, files and what jobs wrote down; how many rows of each table. Models that were trained stay.

    Keys stay, revoked and without a name, so that a server never falls open because its last key went away.
    """
    found = accounts.find_user(user)
    if found.id == by.user and found.id != LOCAL:
        raise Forbidden("you cannot erase yourself", where="id", cure="ask another admin")
    for id in jobs.ids_of(found.id):
        jobs.forget(id)
    gone: dict[str, int] = {}
    with store.transaction() as db:
        for table, column, parent in PARTS:
            query = f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM {parent} WHERE user = ?)"  # noqa: S608
            gone[table] = db.execute(query, (found.id,)).rowcount
        for table in TABLES:
            gone[table] = db.execute(f"DELETE FROM {table} WHERE user = ?", (found.id,)).rowcount  # noqa: S608
        if found.id != LOCAL:
            query = "UPDATE keys SET name = '', limits = '{}', revoked = coalesce(revoked, ?) WHERE user = ?"
            gone["keys"] = db.execute(query, (time.time(), found.id)).rowcount
            gone["users"] = db.execute("DELETE FROM users WHERE id = ?", (found.id,)).rowcount
    files.sweep()
    with store.reading() as db:  # so that it is no longer in the database's file either
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    accounts.note(by, "erase user", found.id, json.dumps(gone))
    return gone
