"""Uploaded and made files: rows in the database, contents by their SHA-256 below the workspace's `files`.

A name that somebody gave is told back and never becomes a path. A row is there only when its content is on the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ladderlm import store
from ladderlm.errors import NotFound
from ladderlm.serve.accounts import Who
from ladderlm.types import Value

CHUNK = 1 << 20
LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class File(Value):
    id: str
    user: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created: float
    expires: float | None = None

    @property
    def path(self) -> Path:
        return _place(self.sha256)


def _place(sha256: str) -> Path:
    return store.home() / "files" / sha256[:2] / sha256


def put(source: IO[bytes], filename: str, purpose: str, user: str, *, expires_in: float | None = None) -> File:
    """Keeps what `source` holds; when this returns it is on the disk."""
    with _written(source) as (path, sha256, size), store.transaction() as db:
        return add(db, path, sha256, size, filename, purpose, user, expires_in=expires_in)


def put_text(lines: Iterable[str], filename: str, purpose: str, user: str, db: sqlite3.Connection) -> File:
    """Keeps text as part of a transaction."""
    with tempfile.TemporaryFile("w+b") as whole:
        for line in lines:
            whole.write(line.encode("utf-8", "surrogatepass"))
        whole.seek(0)
        with _written(whole) as (path, sha256, size):
            return add(db, path, sha256, size, filename, purpose, user)


@contextlib.contextmanager
def _written(source: IO[bytes]) -> Iterator[tuple[Path, str, int]]:
    """A copy of `source` on the disk beside where it will be, its hash and size. It goes where nobody took it."""
    root = store.make_dir(store.home() / "files")
    with store.storage_errors(root):
        fd, name = tempfile.mkstemp(suffix=".part", dir=root)
        path, digest, size = Path(name), hashlib.sha256(), 0
        try:
            with os.fdopen(fd, "wb") as out:
                while chunk := source.read(CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                out.flush()
                os.fsync(out.fileno())
            yield path, digest.hexdigest(), size
        finally:
            path.unlink(missing_ok=True)


def add(
    db: sqlite3.Connection, path: Path, sha256: str, size: int, filename: str, purpose: str, user: str,
    *, expires_in: float | None = None,
) -> File:  # fmt: skip
    """Moves the content to its place and writes the row. Inside a transaction, so that no sweep comes between."""
    place = _place(sha256)
    if not place.exists():
        store.make_dir(place.parent)
        os.replace(path, place)
        store.sync_dir(place.parent)
    now = time.time()
    shown = "".join(c for c in filename if c.isprintable())[-LONGEST_NAME:] or "file"
    file = File(
        f"file-{secrets.token_hex(12)}", user, shown, purpose, size, sha256, now, expires_in and now + expires_in
    )
    db.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", dataclasses.astuple(file))
    return file


def get(id: str, who: Who) -> File:
    """NotFound for a file that is not there, has expired, or is somebody else's."""
    with store.reading() as db:
        row = db.execute("SELECT * FROM files WHERE id = ?", (id,)).fetchone()
    if row is None or not who.may_see(row["user"]) or (row["expires"] or time.time() + 1) <= time.time():
        raise NotFound(f"no file {id!r}"[:80], where="file")
    return File(**dict(row))


def listed(
    who: Who, *, purpose: str | None = None, after: str | None = None, limit: int = 10_000, newest_first: bool = True
) -> tuple[list[File], bool]:
    """One page of one's own files (an admin's: of all), and whether there are more."""
    where, values = ["(expires IS NULL OR expires > ?)"], list[float | str]([time.time()])
    for sql, value in (("purpose = ?", purpose), ("user = ?", None if who.admin else who.user)):
        if value is not None:
            where.append(sql)
            values.append(value)
    sign, order = ("<", "DESC") if newest_first else (">", "ASC")
    if after is not None:
        where.append(f"rowid {sign} (SELECT rowid FROM files WHERE id = ?)")  # noqa: S608
        values.append(get(after, who).id)
    query = f"SELECT * FROM files WHERE {' AND '.join(where)} ORDER BY rowid {order} LIMIT ?"  # noqa: S608
    with store.reading() as db:
        found = [File(**dict(row)) for row in db.execute(query, (*values, limit + 1))]
    return found[:limit], len(found) > limit


def delete(id: str, who: Who) -> None:
    file = get(id, who)
    with store.transaction() as db:
        db.execute("DELETE FROM files WHERE id = ?", (file.id,))
    sweep()


def sweep() -> int:
    """Removes expired rows, and contents that no row is of. How many contents."""
    gone = 0
    with store.transaction() as db:  # nobody adds a row while we look
        db.execute("DELETE FROM files WHERE expires <= ?", (time.time(),))
        for path in (store.home() / "files").glob("*/*"):
            if db.execute("SELECT 1 FROM files WHERE sha256 = ?", (path.name,)).fetchone() is None:
                path.unlink(missing_ok=True)
                gone += 1
    return gone
