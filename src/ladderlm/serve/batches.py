"""Batches: a file of requests, answered in the background by this very server, behind everybody who waits.

Every answer is committed before it is counted. A server that was killed goes on with the lines that lack one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ladderlm import store
from ladderlm.errors import LadderError, NotFound, StorageError, UsageError
from ladderlm.serve import files
from ladderlm.serve.accounts import Accounts, Who
from ladderlm.serve.door import INSIDE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW = 24 * 3600.0
AT_ONCE = 4  # requests of a batch that run side by side
MOST_LINES = 50_000
MOST_ERRORS = 100
LAST = 1_000_000  # the priority of those who wait longest
LOOK = 0.5  # seconds between looks at whether a batch was cancelled
IDLE = 5.0
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """`state`: what is told of it beside the columns."""

    id: str
    user: str
    key: str
    created: float
    status: str
    state: Mapping[str, Any]
    done: int = 0
    failed: int = 0

    def to_wire(self) -> dict[str, Any]:
        counts = {"total": self.state.get("total", 0), "completed": self.done, "failed": self.failed}
        return {
            "id": self.id, "object": "batch", "status": self.status, "created_at": int(self.created),
            "expires_at": int(self.created + WINDOW), **{k: v for k, v in self.state.items() if k != "total"},
            "request_counts": counts,
        }  # fmt: skip


def create(who: Who, file: str, endpoint: str, metadata: Mapping[str, str] | None) -> Batch:
    """A batch that waits for its turn. NotFound for a file that is not there, UsageError for one of another purpose."""
    found = files.get(file, who)
    if found.purpose != "batch":
        raise UsageError(f"the file's purpose is {found.purpose}", where="input_file_id", cure="upload it for: batch")
    state = {
        "endpoint": endpoint, "input_file_id": found.id, "completion_window": "24h", "metadata": metadata,
    }  # fmt: skip
    batch = Batch(f"batch_{secrets.token_hex(12)}", who.user, who.key, time.time(), "validating", state)
    with store.transaction() as db:
        row = (batch.id, batch.user, batch.key, batch.created, batch.status, json.dumps(state))
        db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)
    return batch


def get(id: str, who: Who) -> Batch:
    with store.reading() as db:
        return _read(db, id, who)


def listed(who: Who, after: str | None, limit: int) -> tuple[list[Batch], bool]:
    """The latest first, and whether there are more."""
    with store.reading() as db:
        where, values = ["1"], list[Any]()
        if not who.admin:
            where, values = ["user = ?"], [who.user]
        if after is not None:
            where.append("rowid < (SELECT rowid FROM batches WHERE id = ?)")
            values.append(_read(db, after, who).id)
        query = f"SELECT id FROM batches WHERE {' AND '.join(where)} ORDER BY rowid DESC LIMIT ?"  # noqa: S608
        ids = [row["id"] for row in db.execute(query, (*values, limit + 1))]
        return [_read(db, id, who) for id in ids[:limit]], len(ids) > limit


def cancel(id: str, who: Who) -> Batch:
    """Ends a batch; what it has answered by then is given out."""
    with store.transaction() as db:
        batch = _read(db, id, who)
        if batch.status not in OPEN:
            raise UsageError(f"the batch is {batch.status} already", where="batch_id")
        if batch.status != "cancelling":
            _change(db, batch.id, "cancelling", cancelling_at=int(time.time()))
        return _read(db, id, who)


def _read(db: sqlite3.Connection, id: str, who: Who | None = None) -> Batch:
    row = db.execute("SELECT * FROM batches WHERE id = ?", (id,)).fetchone()
    if row is None or (who is not None and not who.may_see(row["user"])):
        raise NotFound(f"no batch {id!r}"[:80], where="batch_id")
    counts = dict(db.execute("SELECT ok, count(*) FROM batch_answers WHERE batch = ? GROUP BY ok", (id,)).fetchall())
    state = json.loads(row["state"])
    return Batch(id, row["user"], row["key"], row["created"], row["status"], state, counts.get(1, 0), counts.get(0, 0))


def _change(db: sqlite3.Connection, id: str, status: str, **told: Any) -> None:
    row = db.execute("SELECT state FROM batches WHERE id = ?", (id,)).fetchone()
    if row is not None:  # else it was erased
        state = {**json.loads(row["state"]), **told}
        db.execute("UPDATE batches SET status = ?, state = ? WHERE id = ?", (status, json.dumps(state), id))


def _moved(id: str, before: str, status: str, **told: Any) -> bool:
    """Changes the status, unless it is no longer `before`."""
    with store.transaction() as db:
        row = db.execute("SELECT status FROM batches WHERE id = ?", (id,)).fetchone()
        if row is None or row["status"] != before:
            return False
        _change(db, id, status, **told)
        return True


# --- A batch's lines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    custom_id: str
    body: dict[str, Any]


def lines_of(batch: Batch, who: Who) -> Iterator[Line | dict[str, Any]]:
    """Each line of the input file: a request, or what is wrong with it."""
    seen: set[str] = set()
    with files.get(batch.state["input_file_id"], who).path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield _line(number, raw, batch.state["endpoint"], seen)
            except UsageError as error:
                yield {"code": "invalid_request", "message": error.what, "param": error.where, "line": number}


def _line(number: int, raw: bytes, endpoint: str, seen: set[str]) -> Line:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError("a line must be a JSON object")
    name, body = row.get("custom_id"), row.get("body")
    if not isinstance(name, str) or not name:
        raise UsageError("custom_id must be text", where="custom_id")
    if name in seen:
        raise UsageError(f"the custom_id {name!r} came before", where="custom_id")
    seen.add(name)
    if row.get("method") != "POST":
        raise UsageError("method must be POST", where="method")
    if row.get("url") != endpoint:
        raise UsageError(f"url must be the batch's endpoint {endpoint}", where="url")
    if not isinstance(body, dict):
        raise UsageError("body must be an object", where="body")
    if body.get("stream"):
        raise UsageError("a batch's answers are not streamed", where="body.stream")
    if body.get("background"):
        raise UsageError("a batch is in the background already", where="body.background", cure="leave it out")
    return Line(number, name, body)


def checked(batch: Batch, who: Who) -> tuple[int, str | None, list[dict[str, Any]]]:
    """How many requests, the first one's model, and what is wrong."""
    total, model, errors = 0, None, list[dict[str, Any]]()
    for line in lines_of(batch, who):
        total += 1
        if isinstance(line, dict):
            errors.append(line)
        elif model is None and isinstance(line.body.get("model"), str):
            model = line.body["model"]
        if total > MOST_LINES or len(errors) >= MOST_ERRORS:
            break
    if not total:
        errors.append({"code": "empty_file", "message": "the file holds no request", "param": None, "line": None})
    if total > MOST_LINES:
        what = f"more than {MOST_LINES} requests"
        errors.append({"code": "too_many_requests", "message": what, "param": None, "line": None})
    return total, model, errors


def _answered(id: str) -> set[int]:
    with store.reading() as db:
        return {row[0] for row in db.execute("SELECT line FROM batch_answers WHERE batch = ?", (id,))}


def _keep(id: str, line: Line, status: int, request: str, body: Any) -> None:
    """Commits one answer. Of a batch that is gone nothing is kept."""
    answer = {
        "id": f"batch_req_{secrets.token_hex(12)}", "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": request, "body": body}, "error": None,
    }  # fmt: skip
    with store.transaction() as db:
        if db.execute("SELECT 1 FROM batches WHERE id = ?", (id,)).fetchone():
            row = (id, line.number, int(status == 200), json.dumps(answer, ensure_ascii=False))
            db.execute("INSERT OR IGNORE INTO batch_answers VALUES (?, ?, ?, ?)", row)


def finish(id: str, status: str) -> None:
    """Writes the files of what came out, and ends the batch with `status`, all at once."""
    with store.transaction() as db:
        batch = _read(db, id)
        told: dict[str, Any] = {f"{status}_at": int(time.time())}
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        cached = 0
        for ok, name, count in ((1, "output", batch.done), (0, "error", batch.failed)):
            if count:
                query = "SELECT answer FROM batch_answers WHERE batch = ? AND ok = ? ORDER BY line"
                lines = (row[0] + "\n" for row in db.execute(query, (id, ok)))
                made = files.put_text(lines, f"{id}_{name}.jsonl", "batch_output", batch.user, db)
                told[f"{name}_file_id"] = made.id
        for row in db.execute("SELECT answer FROM batch_answers WHERE batch = ? AND ok = 1", (id,)):
            spent = json.loads(row[0])["response"]["body"].get("usage") or {}
            read = spent.get("prompt_tokens", spent.get("input_tokens", 0))
            wrote = spent.get("completion_tokens", spent.get("output_tokens", 0))
            details = spent.get("prompt_tokens_details") or spent.get("input_tokens_details") or {}
            cached += details.get("cached_tokens", 0)
            usage = {"input_tokens": usage["input_tokens"] + read, "output_tokens": usage["output_tokens"] + wrote,
                     "total_tokens": usage["total_tokens"] + read + wrote}  # fmt: skip
        told["usage"] = {
            **usage, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens_details": {"reasoning_tokens": 0},
        }  # fmt: skip
        _change(db, id, status, **told)


# --- Running ------------------------------------------------------------------------------------------------------


class Batches:
    """Runs what waits, one batch after another, on the server's own event loop."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._app: ASGIApp | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._claim = contextlib.ExitStack()
        self._claimed = False

    def start(self, app: ASGIApp) -> None:
        """Begins on the running loop, also with what another process left unfinished."""
        self._app, self._loop = app, asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._claim.close()

    def wake(self) -> None:
        """There is something new. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                waiting = await asyncio.to_thread(self._next)
                if waiting is not None:
                    await self._one(waiting)
                    continue
            except Exception:  # whatever it was, the others go on
                _log.exception("batches stand still")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), IDLE)

    def _next(self) -> Batch | None:
        """The oldest that is not over, unless another process of this workspace sees to them."""
        marks = ", ".join("?" * len(OPEN))
        with store.reading() as db:
            query = f"SELECT id FROM batches WHERE status IN ({marks}) ORDER BY rowid LIMIT 1"  # noqa: S608
            row = db.execute(query, OPEN).fetchone()
            if row is None:
                return None
            if not self._claimed:
                try:
                    self._claim.enter_context(store.lock(store.home() / "batches", timeout=0))
                except StorageError:
                    return None
                self._claimed = True
            return _read(db, row["id"])

    async def _one(self, batch: Batch) -> None:
        """As far as it goes."""
        who = self._accounts.owner(batch.user, batch.key)
        if who is None:
            await self._fail(batch, [_problem("key_revoked", "the key that began the batch is no longer valid")])
        elif batch.status == "validating":
            await self._validate(batch, who)
        elif batch.status == "in_progress":
            await self._answer(batch, who)
        elif batch.status == "finalizing":
            late = time.time() > batch.created + WINDOW and batch.done + batch.failed < batch.state["total"]
            await asyncio.to_thread(finish, batch.id, "expired" if late else "completed")
        else:
            await asyncio.to_thread(finish, batch.id, "cancelled")

    async def _validate(self, batch: Batch, who: Who) -> None:
        try:
            total, model, errors = await asyncio.to_thread(checked, batch, who)
        except (NotFound, OSError):
            total, model, errors = 0, None, [_problem("file_gone", "the input file is gone")]
        if errors:
            await self._fail(batch, errors)
        else:
            told = {"total": total, "model": model, "in_progress_at": int(time.time())}
            await asyncio.to_thread(lambda: _moved(batch.id, "validating", "in_progress", **told))

    async def _fail(self, batch: Batch, errors: list[dict[str, Any]]) -> None:
        told = {"errors": {"object": "list", "data": errors}, "failed_at": int(time.time())}
        await asyncio.to_thread(lambda: _moved(batch.id, batch.status, "failed", **told))

    async def _answer(self, batch: Batch, who: Who) -> None:
        """Asks for every line without an answer, a few at a time, until done, cancelled or too late."""
        answered = await asyncio.to_thread(_answered, batch.id)
        working = asyncio.create_task(self._work(batch, who, answered))
        try:
            while not working.done():
                await asyncio.wait((working,), timeout=LOOK)
                now = await asyncio.to_thread(_status, batch.id)
                gone = self._accounts.owner(batch.user, batch.key) is None
                if gone or now != "in_progress" or time.time() > batch.created + WINDOW:
                    break
        finally:
            working.cancel()
            result = (await asyncio.gather(working, return_exceptions=True))[0]
        if isinstance(result, (LadderError, OSError)):
            await self._fail(batch, [_problem("file_gone", "the input file is gone")])
        elif isinstance(result, Exception):
            raise result
        told = {"finalizing_at": int(time.time())}
        await asyncio.to_thread(lambda: _moved(batch.id, "in_progress", "finalizing", **told))

    async def _work(self, batch: Batch, who: Who, answered: set[int]) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            for line in lines_of(batch, who):
                if isinstance(line, dict) or line.number in answered:
                    continue
                if len(running) >= AT_ONCE:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                running.add(asyncio.create_task(self._ask(batch, who, line)))
            for task in running:
                await task
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ask(self, batch: Batch, who: Who, line: Line) -> None:
        """One request, as often as it takes while the server is too busy for it, or about to end: another goes on."""
        assert self._app is not None
        while True:
            request = {**line.body, "priority": LAST}
            status, headers, body = await asked(self._app, who, batch.state["endpoint"], request)
            if status not in (429, 503):
                break
            await asyncio.sleep(min(60.0, float(headers.get("retry-after", 1))))
        await asyncio.to_thread(_keep, batch.id, line, status, headers.get("x-request-id", ""), body)


def _status(id: str) -> str:
    with store.reading() as db:
        row = db.execute("SELECT status FROM batches WHERE id = ?", (id,)).fetchone()
    return row["status"] if row else "gone"


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


async def asked(app: ASGIApp, who: Who, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, str], Any]:
    """The app's own answer to a request of `who`: status, headers, JSON."""
    data, sent, status, headers = json.dumps(body).encode(), False, 500, dict[str, str]()
    answer = bytearray()

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # this client never goes away
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update((n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in message["headers"])
        else:
            answer.extend(message.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")], "state": {}, INSIDE: who,
    }  # fmt: skip
    try:
        await app(scope, receive, send)
        return status, headers, json.loads(bytes(answer) or b"null")
    except Exception:
        _log.exception("a batch's request failed")
        problem = {"message": "internal error", "type": "server_error", "param": None, "code": None}
        return 500, headers, {"error": problem}
