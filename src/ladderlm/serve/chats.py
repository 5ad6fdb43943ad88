"""The page's history: chats as trees of messages, presets and votes, in the workspace's database.

Every row has an owner, and nobody reads or changes another's: to them it does not exist. A message names its parent,
so an edited question or another answer is a sibling; a chat's `leaf` is the end of the branch that is shown.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ladderlm import store
from ladderlm.data.records import make_record
from ladderlm.errors import NotFound, UsageError
from ladderlm.types import Record

Object = dict[str, Any]

FORMAT = 1
MOST = 500  # rows in one page of a list
_CHAT = "id, title, folder, system, settings, leaf, created, updated"
_MESSAGE = "m.id, m.parent, m.role, m.content, m.told, m.created"


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


# --- Chats --------------------------------------------------------------------------------------------------------


def list_chats(owner: str, *, limit: int = 50, before: float | None = None) -> list[Object]:
    """The latest first; `before` is the `updated` of the last one seen."""
    with store.reading() as db:
        rows = db.execute(
            f"SELECT {_CHAT} FROM chats WHERE user = ? AND updated < ? ORDER BY updated DESC LIMIT ?",  # noqa: S608
            (owner, before or 1e18, limit),
        )
        return [_chat(row) for row in rows]


def get_chat(owner: str, chat: str) -> Object:
    with store.reading() as db:
        return _chat(_own(db, owner, chat))


def create_chat(owner: str, fields: Mapping[str, Any]) -> Object:
    with store.transaction() as db:
        return _chat(_own(db, owner, _create(db, owner, fields)))


def _create(db: sqlite3.Connection, owner: str, fields: Mapping[str, Any]) -> str:
    name, now = new_id("chat"), time.time()
    created = fields.get("created") or now
    db.execute(
        "INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?)",
        (name, owner, fields.get("title") or "", fields.get("folder") or "", fields.get("system") or "",
         _json(fields.get("settings") or {}), created, fields.get("updated") or now),
    )  # fmt: skip
    return name


def update_chat(owner: str, chat: str, fields: Mapping[str, Any]) -> Object:
    """Sets what `fields` names. `leaf`: the branch through that message is shown, to its latest end."""
    with store.transaction() as db:
        _own(db, owner, chat)
        for name in ("title", "folder", "system"):
            if fields.get(name) is not None:
                db.execute(f"UPDATE chats SET {name} = ? WHERE id = ?", (fields[name], chat))  # noqa: S608
        if fields.get("settings") is not None:
            db.execute("UPDATE chats SET settings = ? WHERE id = ?", (_json(fields["settings"]), chat))
        if fields.get("leaf") is not None:
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (_end(db, chat, fields["leaf"]), chat))
        return _chat(_own(db, owner, chat))


def delete_chat(owner: str, chat: str) -> None:
    with store.transaction() as db:
        _own(db, owner, chat)
        _delete(db, [chat])


def _delete(db: sqlite3.Connection, chats: Iterable[str]) -> None:
    for chat in chats:
        db.execute("DELETE FROM message_tokens WHERE chat = ?", (chat,))
        db.execute("DELETE FROM messages WHERE chat = ?", (chat,))
        db.execute("DELETE FROM chats WHERE id = ?", (chat,))


# --- Messages -----------------------------------------------------------------------------------------------------


def list_messages(owner: str, chat: str, *, limit: int = 100, before: str | None = None) -> tuple[list[Object], bool]:
    """The last `limit` messages of the branch that is shown, or those above `before`; and whether there are more.

    Each tells its siblings, itself among them, and whether probabilities of its tokens are kept.
    """
    with store.reading() as db:
        row = _own(db, owner, chat)
        start = row["leaf"]
        if before is not None:
            start = _message_row(db, chat, before)["parent"]
        rows = db.execute(
            f"""
            WITH RECURSIVE path (id, parent, depth) AS (
                SELECT id, parent, 0 FROM messages WHERE chat = :chat AND id = :start
                UNION ALL
                SELECT m.id, m.parent, depth + 1 FROM path JOIN messages m ON m.id = path.parent AND m.chat = :chat
                WHERE depth < :limit
            )
            SELECT {_MESSAGE}, EXISTS (SELECT 1 FROM message_tokens t WHERE t.message = m.id) AS known
            FROM path JOIN messages m ON m.id = path.id ORDER BY depth DESC
            """,  # noqa: S608
            {"chat": chat, "start": start, "limit": limit},
        ).fetchall()
        more = len(rows) > limit
        rows = rows[1:] if more else rows
        return [{**_message(row), "siblings": _siblings(db, chat, row["parent"])} for row in rows], more


def _siblings(db: sqlite3.Connection, chat: str, parent: str | None) -> list[str]:
    found = db.execute("SELECT id FROM messages WHERE chat = ? AND parent IS ? ORDER BY number", (chat, parent))
    return [row["id"] for row in found]


def put_message(owner: str, chat: str, fields: Mapping[str, Any]) -> Object:
    """Adds a message, or replaces what an answer in progress said so far when its id is known. It becomes the leaf."""
    with store.transaction() as db:
        _own(db, owner, chat)
        name = _put(db, chat, fields)
        db.execute("UPDATE chats SET leaf = ?, updated = ? WHERE id = ?", (name, time.time(), chat))
        row = _message_row(db, chat, name)
        return {**_message(row), "siblings": _siblings(db, chat, row["parent"])}


def _put(db: sqlite3.Connection, chat: str, fields: Mapping[str, Any]) -> str:
    parent, name = fields.get("parent"), fields.get("id") or new_id("msg")
    if parent is not None:
        _message_row(db, chat, parent)
    told = _json({key: fields[key] for key in TOLD if fields.get(key)})
    known = db.execute("SELECT chat FROM messages WHERE id = ?", (name,)).fetchone()
    if known is not None and known["chat"] != chat:
        raise UsageError("the id is taken", where="id")
    if known is None:
        db.execute(
            "INSERT INTO messages (id, chat, parent, role, content, told, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, chat, parent, fields["role"], fields["content"], told, fields.get("created") or time.time()),
        )
    else:
        db.execute("UPDATE messages SET content = ?, told = ? WHERE id = ?", (fields["content"], told, name))
    if fields.get("tokens"):
        db.execute("INSERT OR REPLACE INTO message_tokens VALUES (?, ?, ?)", (name, chat, _json(fields["tokens"])))
    return name


TOLD = ("reasoning", "model", "sampling", "timings", "attachments", "finish")  # what a message says beside its text


def tokens_of(owner: str, chat: str, message: str) -> list[Any]:
    """The kept tokens of an answer with their probabilities; empty when none are."""
    with store.reading() as db:
        _own(db, owner, chat)
        _message_row(db, chat, message)
        row = db.execute("SELECT tokens FROM message_tokens WHERE message = ?", (message,)).fetchone()
        found: list[Any] = json.loads(row["tokens"]) if row else []
        return found


def _end(db: sqlite3.Connection, chat: str, message: str) -> str:
    """The latest end of the branch through `message`."""
    _message_row(db, chat, message)
    while True:
        below = db.execute(
            "SELECT id FROM messages WHERE chat = ? AND parent = ? ORDER BY number DESC LIMIT 1", (chat, message)
        ).fetchone()
        if below is None:
            return message
        message = below["id"]


# --- Search -------------------------------------------------------------------------------------------------------


def search(owner: str, query: str, *, limit: int = 30) -> list[Object]:
    """Chats that hold every word of `query`, the best first, with the place; the last word may be a beginning."""
    words = re.findall(r"\w+", query)
    if not words:
        return []
    match = " ".join(f'"{word}"' for word in words) + "*"
    with store.reading() as db:
        rows = db.execute(
            """
            SELECT c.id, c.title, c.folder, c.updated, m.id AS message, m.role,
                snippet(message_search, 0, char(1), char(2), '…', 16) AS excerpt
            FROM message_search JOIN messages m ON m.number = message_search.rowid JOIN chats c ON c.id = m.chat
            WHERE message_search MATCH ? AND c.user = ? ORDER BY rank LIMIT ?
            """,
            (match, owner, limit),
        ).fetchall()
        like = "%" + "%".join(words) + "%"
        titled = db.execute(
            "SELECT id, title, folder, updated, NULL AS message, '' AS role, '' AS excerpt FROM chats "
            "WHERE user = ? AND title LIKE ? ORDER BY updated DESC LIMIT ?",
            (owner, like, limit),
        ).fetchall()
    found: dict[str, Object] = {}
    for row in [*rows, *titled]:
        found.setdefault(row["id"], dict(row))
    return list(found.values())[:limit]


# --- Export and import --------------------------------------------------------------------------------------------


def export(owner: str, chats: Iterable[str] | None = None) -> Iterator[Object]:
    """Whole chats, with settings, timings and tokens, the oldest first; all of them unless some are named."""
    with store.reading() as db:
        every = "SELECT id FROM chats WHERE user = ? ORDER BY created"
        names = [row["id"] for row in db.execute(every, (owner,))] if chats is None else list(chats)
        for name in names:
            rows = db.execute(
                f"SELECT {_MESSAGE}, t.tokens FROM messages m LEFT JOIN message_tokens t ON t.message = m.id "  # noqa: S608
                "WHERE m.chat = ? ORDER BY m.number",
                (name,),
            )
            messages = []
            for row in rows:
                message = _message(row)
                if row["tokens"]:
                    message["tokens"] = json.loads(row["tokens"])
                messages.append(message)
            yield {**_chat(_own(db, owner, name)), "messages": messages}


def import_chats(owner: str, chats: Iterable[Mapping[str, Any]]) -> int:
    """Adds exported chats as new ones. UsageError for a message whose parent does not come before it."""
    count = 0
    with store.transaction() as db:
        for chat in chats:
            name = _create(db, owner, chat)
            renamed: dict[str, str] = {}
            for message in chat.get("messages", ()):
                parent = message.get("parent")
                if parent is not None and parent not in renamed:
                    raise UsageError("a message's parent must come before it", where=f"chats[{count}]")
                fields = {**message, "id": None, "parent": renamed.get(parent) if parent else None}
                renamed[message["id"]] = _put(db, name, fields)
            leaf = renamed.get(chat.get("leaf") or "", next(reversed(renamed.values()), None))
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, name))
            count += 1
    return count


# --- Presets and votes --------------------------------------------------------------------------------------------


def list_presets(owner: str) -> list[Object]:
    with store.reading() as db:
        rows = db.execute("SELECT name, body FROM presets WHERE user = ? ORDER BY name", (owner,))
        return [{**json.loads(row["body"]), "name": row["name"]} for row in rows]


def put_preset(owner: str, name: str, body: Mapping[str, Any]) -> Object:
    with store.transaction() as db:
        db.execute("INSERT OR REPLACE INTO presets VALUES (?, ?, ?, ?)", (owner, name, _json(body), time.time()))
    return {**body, "name": name}


def delete_preset(owner: str, name: str) -> None:
    with store.transaction() as db:
        if not db.execute("DELETE FROM presets WHERE user = ? AND name = ?", (owner, name)).rowcount:
            raise NotFound(f"no preset {name!r}", where="name")


def add_vote(owner: str, body: Mapping[str, Any]) -> Object:
    name, now = new_id("vote"), time.time()
    with store.transaction() as db:
        db.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", (name, owner, _json(body), now))
    return {"id": name, **body, "created": now}


def list_votes(owner: str) -> list[Object]:
    with store.reading() as db:
        rows = db.execute("SELECT id, body, created FROM votes WHERE user = ? ORDER BY created", (owner,))
        return [{"id": row["id"], **json.loads(row["body"]), "created": row["created"]} for row in rows]


def preference_records(votes: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """What votes say of pairs: the answer that won, or the corrected one, before each other answer.

    `meta`: the models, and whether whoever voted did not know them (`blind`). A tie gives no pair.
    """
    for vote in votes:
        answers, choice, correction = vote["answers"], vote.get("choice"), vote.get("correction")
        best = correction or (answers[choice]["content"] if choice is not None else None)
        for number, answer in enumerate(answers if best else ()):
            if answer["content"] != best and (correction or number != choice):
                chosen = "correction" if correction else answers[choice]["model"]
                fields = {**_prompt(vote), "chosen": best, "rejected": answer["content"]}
                meta = {"vote": vote["id"], "models": [chosen, answer["model"]], "blind": bool(vote.get("blind"))}
                yield make_record("preference", fields, source="votes", **meta)


def sft_records(votes: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """What a model should have said: the corrected answers, and those that won."""
    for vote in votes:
        choice, correction = vote.get("choice"), vote.get("correction")
        best = correction or (vote["answers"][choice]["content"] if choice is not None else None)
        if best:
            turns = [*vote["messages"], {"role": "assistant", "content": best}]
            yield make_record("messages", {"messages": turns}, source="votes", vote=vote["id"])


def _prompt(vote: Mapping[str, Any]) -> Object:
    turns = vote["messages"]
    prompt = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    return {"prompt": prompt, "messages": turns} if len(turns) > 1 else {"prompt": prompt}


# --- Rows ---------------------------------------------------------------------------------------------------------


def _own(db: sqlite3.Connection, owner: str, chat: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        f"SELECT {_CHAT} FROM chats WHERE id = ? AND user = ?",  # noqa: S608
        (chat, owner),
    ).fetchone()
    if row is None:
        raise NotFound(f"no chat {chat!r}", where="id")
    return row


def _message_row(db: sqlite3.Connection, chat: str, message: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        f"SELECT {_MESSAGE}, EXISTS (SELECT 1 FROM message_tokens t WHERE t.message = m.id) AS known "  # noqa: S608
        "FROM messages m WHERE m.id = ? AND m.chat = ?",
        (message, chat),
    ).fetchone()
    if row is None:
        raise NotFound(f"no message {message!r}", where="message")
    return row


def _chat(row: sqlite3.Row) -> Object:
    return {**dict(row), "object": "chat", "settings": json.loads(row["settings"])}


def _message(row: sqlite3.Row) -> Object:
    found = {name: row[name] for name in ("id", "parent", "role", "content", "created")}
    found.update(json.loads(row["told"]))
    if "known" in row.keys():  # noqa: SIM118
        found["has_tokens"] = bool(row["known"])
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
