"""The request log: one row a request, and sums by day, user, key and model that outlive the rows.

A thread writes, a transaction every FLUSH seconds: nobody waits for the disk. A process that is killed loses what came
in the last FLUSH seconds; what was written stays. Nothing of a request's headers is ever written, and of its content
only what the server was told to keep.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ladderlm import store
from ladderlm.errors import LadderError, UsageError, nearest
from ladderlm.serve.trail import Trail
from ladderlm.talk.prices import price

FLUSH = 0.2
COLUMNS = (
    "time", "request", "user", "key", "route", "model", "status", "prompt_tokens", "completion_tokens",
    "cached_tokens", "first_ms", "total_ms", "cost", "finish_reason", "asked", "answered",
)  # fmt: skip
GROUPS = ("day", "user", "key", "model")
_log = logging.getLogger(__name__)


class RequestLog:
    """`content`: requests and answers are kept too. `days`: rows older than that are removed (0: none are)."""

    def __init__(self, *, content: bool = False, days: float = 0.0) -> None:
        self.content, self.days = content, days
        self._ended: queue.SimpleQueue[Trail | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    def put(self, request: Trail) -> None:
        """Takes note of a request that has ended. Never waits."""
        self._ended.put(request)
        if self._thread is None:
            with self._guard:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._write, name="serve-log", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Writes what is left. What comes later is written by another thread."""
        with self._guard:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.put(None)
            thread.join(10)

    def _write(self) -> None:
        with contextlib.closing(store.database()) as db:
            db.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing by it
            while True:
                ended = [self._ended.get()]
                time.sleep(FLUSH if ended[0] is not None else 0)
                while not self._ended.empty():
                    ended.append(self._ended.get())
                try:
                    write(db, [request for request in ended if request is not None], content=self.content)
                except (sqlite3.Error, LadderError):
                    _log.exception("the request log lost %d rows", len(ended))
                if None in ended:
                    return


def write(db: sqlite3.Connection, ended: Sequence[Trail], *, content: bool = False) -> None:
    """The rows of requests that have ended and what they add to the sums, in one transaction."""
    rows = [_row(request, content) for request in ended]
    marks = ", ".join("?" * len(COLUMNS))
    with db:
        db.executemany(f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({marks})", rows)  # noqa: S608
        db.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = requests + 1, "
            "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens, "
            "cached_tokens = cached_tokens + excluded.cached_tokens, cost = cost + excluded.cost",
            [(_day(row[0]), *row[2:4], row[5], *row[7:10], row[12] or 0.0) for row in rows],
        )  # fmt: skip
        used = {request.who.key: request.at for request in ended if request.who.key}
        db.executemany("UPDATE keys SET used = ? WHERE id = ?", [(at, key) for key, at in used.items()])


def _row(request: Trail, content: bool) -> tuple[Any, ...]:
    """In the order of COLUMNS."""
    usage, meters = request.usage, request.meters
    cost = usage.cost
    if cost is None and request.model and (usage.prompt_tokens or usage.completion_tokens):
        with contextlib.suppress(LadderError):
            cost = price(request.model, usage.prompt_tokens, usage.completion_tokens)
    first = min((m.to_first for m in meters if m.to_first is not None), default=None)
    asked = None if request.body is None or not content else request.body.decode("utf-8", "replace")
    answered = "".join(text for m in meters for text in m.text) if content and meters else None
    return (
        request.at, request.id, request.who.user, request.who.key, request.route, request.model, request.status,
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens,
        None if first is None else round(first * 1000, 3), round(request.seconds * 1000, 3), cost,
        meters[-1].reason if meters else None, asked, answered,
    )  # fmt: skip


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def forget(days: float) -> int:
    """Removes rows older than so many days; the sums stay. How many."""
    with store.transaction() as db:
        return db.execute("DELETE FROM requests WHERE time < ?", (time.time() - days * 86400,)).rowcount


# --- Looking ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows; "" and None mean any. Times are seconds since 1970; `status` 4 means all of 4xx."""

    user: str = ""
    key: str = ""
    model: str = ""
    route: str = ""
    status: int | None = None
    since: float | None = None
    until: float | None = None

    def where(self) -> tuple[str, list[Any]]:
        parts, values = ["1"], list[Any]()
        for name in ("user", "key", "model", "route"):
            if given := getattr(self, name):
                parts.append(f"{name} = ?")
                values.append(given)
        if self.status is not None:
            low, high = (self.status * 100, self.status * 100 + 99) if self.status < 10 else (self.status, self.status)
            parts.append("status BETWEEN ? AND ?")
            values += [low, high]
        for name, sign in (("since", ">="), ("until", "<")):
            if (at := getattr(self, name)) is not None:
                parts.append(f"time {sign} ?")
                values.append(at)
        return " AND ".join(parts), values


def requests(wanted: Filter, *, limit: int = 100, after: int | None = None) -> list[dict[str, Any]]:
    """The latest first; `after` the row of that number."""
    where, values = wanted.where()
    if after is not None:
        where, values = f"{where} AND id < ?", [*values, after]
    query = f"SELECT id, {', '.join(COLUMNS)} FROM requests WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608
    with store.reading() as db:
        return [dict(row) for row in db.execute(query, (*values, limit))]


def exported(wanted: Filter, form: str) -> Iterator[str]:
    """All rows, the oldest first, as JSON lines or CSV, in pieces."""
    if form not in ("jsonl", "csv"):
        raise UsageError(f"no format {form!r}", where="format", cure=nearest(form, ("jsonl", "csv")))
    where, values = wanted.where()
    query = f"SELECT {', '.join(COLUMNS)} FROM requests WHERE {where} ORDER BY id"  # noqa: S608
    return _lines(query, values, form)


def _lines(query: str, values: Sequence[Any], form: str) -> Iterator[str]:
    with store.reading() as db:
        found = db.execute(query, values)
        if form == "csv":
            yield _csv([COLUMNS])
        while rows := found.fetchmany(500):
            if form == "csv":
                yield _csv([tuple(map(_cell, row)) for row in rows])
            else:
                yield "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet runs text that begins like a formula: such text is quoted."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def usage(wanted: Filter, by: Sequence[str] = ("day",)) -> list[Mapping[str, Any]]:
    """Sums of requests, tokens and cost, by what `by` names."""
    for name in by:
        if name not in GROUPS:
            raise UsageError(f"cannot sum by {name!r}", where="group_by", cure=nearest(name, GROUPS))
    parts, values = ["1"], list[Any]()
    for name in ("user", "key", "model"):
        if given := getattr(wanted, name):
            parts.append(f"{name} = ?")
            values.append(given)
    for sign, at in ((">=", wanted.since), ("<=", wanted.until)):
        if at is not None:
            parts.append(f"day {sign} ?")
            values.append(_day(at))
    sums = ", ".join(f"coalesce(sum({n}), 0) AS {n}" for n in
                     ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "cost"))  # fmt: skip
    names = ", ".join(by)
    group = f"GROUP BY {names} ORDER BY {names}" if by else ""
    query = f"SELECT {names + ', ' if by else ''}{sums} FROM usage WHERE {' AND '.join(parts)} {group}"  # noqa: S608
    with store.reading() as db:
        return [dict(row) for row in db.execute(query, values)]
