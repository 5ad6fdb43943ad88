"""The workspace on disk: files written whole or not at all, locks, run folders, and one SQLite database."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ladderlm.errors import FormatError, LadderError, NotFound, StorageError, UsageError
from ladderlm.types import Run

# mkstemp makes private files; what is finished gets the usual permissions. Reading the mask means setting it.
_UMASK = os.umask(0o022)
os.umask(_UMASK)
CACHE_BYTES = 64 * 10**9  # of packed weights, where the disk is large enough
_SCHEMA = (
    """
    CREATE TABLE conversations (id INTEGER PRIMARY KEY, created REAL, model TEXT, conversation TEXT, sampling TEXT);
    CREATE TABLE templates (name TEXT PRIMARY KEY, body TEXT NOT NULL, system TEXT, created REAL);
    """,
    # Who calls the server, what was asked of it, and the work it does in the background.
    """
    CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, created REAL NOT NULL,
        disabled REAL);
    INSERT INTO users VALUES ('user-local', 'local', 'admin', 0, NULL);
    CREATE TABLE keys (id TEXT PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL, hash BLOB NOT NULL,
        scopes TEXT NOT NULL, limits TEXT NOT NULL, created REAL NOT NULL, expires REAL, revoked REAL, used REAL);
    CREATE INDEX keys_of_user ON keys (user);
    CREATE TABLE requests (id INTEGER PRIMARY KEY, time REAL NOT NULL, request TEXT NOT NULL, user TEXT NOT NULL,
        key TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL, status INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        first_ms REAL, total_ms REAL NOT NULL, cost REAL, finish_reason TEXT, asked TEXT, answered TEXT);
    CREATE INDEX requests_by_time ON requests (time);
    CREATE INDEX requests_of_user ON requests (user, time);
    CREATE TABLE usage (day TEXT, user TEXT, key TEXT, model TEXT, requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
        cost REAL NOT NULL, PRIMARY KEY (day, user, key, model));
    CREATE INDEX usage_of_key ON usage (key, day);
    CREATE TABLE audit (id INTEGER PRIMARY KEY, time REAL NOT NULL, user TEXT NOT NULL, key TEXT NOT NULL,
        act TEXT NOT NULL, object TEXT NOT NULL, detail TEXT NOT NULL);
    CREATE TABLE files (id TEXT PRIMARY KEY, user TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, created REAL NOT NULL, expires REAL);
    CREATE INDEX files_of_content ON files (sha256);
    CREATE TABLE batches (id TEXT PRIMARY KEY, user TEXT NOT NULL, key TEXT NOT NULL, created REAL NOT NULL,
        status TEXT NOT NULL, state TEXT NOT NULL);
    CREATE TABLE batch_answers (batch TEXT NOT NULL, line INTEGER NOT NULL, ok INTEGER NOT NULL, answer TEXT NOT NULL,
        PRIMARY KEY (batch, line));
    CREATE TABLE jobs (id TEXT PRIMARY KEY, user TEXT NOT NULL, key TEXT NOT NULL, created REAL NOT NULL,
        status TEXT NOT NULL, state TEXT NOT NULL);
    CREATE TABLE job_events (id INTEGER PRIMARY KEY, job TEXT NOT NULL, time REAL NOT NULL, level TEXT NOT NULL,
        type TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL);
    CREATE INDEX events_of_job ON job_events (job, id);
    """,
    # What the page keeps: chats as trees of messages, with their text to search in; presets; votes.
    """
    CREATE TABLE chats (id TEXT PRIMARY KEY, user TEXT NOT NULL, title TEXT NOT NULL, folder TEXT NOT NULL,
        system TEXT NOT NULL, settings TEXT NOT NULL, leaf TEXT, created REAL NOT NULL, updated REAL NOT NULL);
    CREATE INDEX chats_by_user ON chats (user, updated);
    CREATE TABLE messages (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, chat TEXT NOT NULL, parent TEXT,
        role TEXT NOT NULL, content TEXT NOT NULL, told TEXT NOT NULL, created REAL NOT NULL);
    CREATE INDEX messages_by_parent ON messages (chat, parent);
    CREATE TABLE message_tokens (message TEXT PRIMARY KEY, chat TEXT NOT NULL, tokens TEXT NOT NULL);
    CREATE INDEX message_tokens_by_chat ON message_tokens (chat);
    CREATE VIRTUAL TABLE message_search USING fts5(content, content=messages, content_rowid=number);
    CREATE TRIGGER message_made AFTER INSERT ON messages BEGIN
        INSERT INTO message_search (rowid, content) VALUES (new.number, new.content); END;
    CREATE TRIGGER message_gone AFTER DELETE ON messages BEGIN
        INSERT INTO message_search (message_search, rowid, content) VALUES ('delete', old.number, old.content); END;
    CREATE TRIGGER message_changed AFTER UPDATE OF content ON messages BEGIN
        INSERT INTO message_search (message_search, rowid, content) VALUES ('delete', old.number, old.content);
        INSERT INTO message_search (rowid, content) VALUES (new.number, new.content); END;
    CREATE TABLE presets (user TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, created REAL NOT NULL,
        PRIMARY KEY (user, name));
    CREATE TABLE votes (id TEXT PRIMARY KEY, user TEXT NOT NULL, body TEXT NOT NULL, created REAL NOT NULL);
    """,
    # Stored responses.
    """
    CREATE TABLE responses (id TEXT PRIMARY KEY, user TEXT NOT NULL, created REAL NOT NULL, previous TEXT,
        input TEXT NOT NULL, body TEXT NOT NULL);
    CREATE INDEX responses_of_user ON responses (user, created);
    """,
    # Conversations that responses belong to.
    """
    CREATE TABLE response_conversations (id TEXT PRIMARY KEY, user TEXT NOT NULL, created REAL NOT NULL,
        metadata TEXT NOT NULL);
    CREATE TABLE conversation_items (number INTEGER PRIMARY KEY, conversation TEXT NOT NULL, id TEXT NOT NULL,
        body TEXT NOT NULL, UNIQUE (conversation, id));
    """,
)
SCHEMA_VERSION = len(_SCHEMA)


def home() -> Path:
    """The workspace: `$LADDERLM_HOME`, else `~/.ladderlm`."""
    return Path(os.environ.get("LADDERLM_HOME") or Path.home() / ".ladderlm").expanduser()


def models_dir() -> Path:
    return home() / "models"


def cache_dir() -> Path:
    return home() / "cache"


def runs_dir() -> Path:
    return home() / "runs"


# --- Files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's complaints about `path` into StorageErrors that name the cure."""
    try:
        yield
    except LadderError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError("the disk is full", where=str(path), cure="free space or set LADDERLM_HOME") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            cure = "check permissions or set LADDERLM_HOME"
            raise StorageError("cannot write", where=str(path), cure=cure) from error
        raise


def make_dir(path: Path) -> Path:
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a sibling temporary file that replaces `path` only when the block ends without an error."""
    make_dir(path.parent)
    with storage_errors(path):
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            Path(name).chmod(0o666 & ~_UMASK)
            os.replace(name, path)
            sync_dir(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def atomic_dir(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a sibling temporary folder that becomes `path` only when the block ends without an error.

    Raises StorageError when `path` exists and `replace` is false.
    """
    if path.exists() and not replace:
        raise StorageError("already exists", where=str(path), cure="choose another name or remove it")
    make_dir(path.parent)
    with storage_errors(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as f:
                        os.fsync(f.fileno())
                else:
                    sync_dir(file)
            sync_dir(temporary)
            temporary.chmod(0o777 & ~_UMASK)
            if path.exists():
                old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
                os.rename(path, old)
                os.rename(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, path)
            sync_dir(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sync_dir(folder: Path) -> None:
    """Brings the names in a folder to the disk, so that a rename survives a power cut; not every system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def lock(path: Path, timeout: float = 600.0) -> Iterator[None]:
    """Holds an exclusive lock beside `path` against other processes and threads; dies with the process."""
    make_dir(path.parent)
    file = path.with_name(path.name + ".lock")
    with storage_errors(file):
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() > until:
                raise StorageError("another process holds the lock", where=str(file), cure="wait for it or end it")
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def prune(used: Path, most: int | None = None) -> None:
    """Notes that the cached file `used` is in use now, and makes room in its folder: above `most` bytes (default:
    `cache_limit()`) the files that were used longest ago go, and what a process that died left of one it wrote.

    `used` stays, and so does every file whose lock is held. Who has a file mapped keeps what it has mapped.
    """
    with storage_errors(used):
        os.utime(used)  # systems seldom note when a file is read
    most = cache_limit() if most is None else most
    found = dict[Path, os.stat_result]()
    for path in used.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may just have removed it
            if path.is_file() and path.suffix != ".lock":
                found[path] = path.stat()
    left = sum(stat.st_size for stat in found.values())
    for path in sorted(found, key=lambda p: (p.suffix != ".part", found[p].st_mtime_ns)):
        unfinished = path.suffix == ".part"
        if path == used or (left <= most and not unfinished):
            continue
        # `atomic_file` writes NAME as .NAME.xxxxxxxx.part
        name = path.name[1:].rsplit(".", 2)[0] if unfinished else path.name
        with contextlib.suppress(StorageError, OSError), lock(path.with_name(name), timeout=0):
            path.unlink()
            left -= found[path].st_size


def cache_limit() -> int:
    """Bytes that the engine's packed weights may take: `$LADDERLM_CACHE_GB`, else 64 GB or a quarter of the disk."""
    if (told := os.environ.get("LADDERLM_CACHE_GB")) is None:
        return min(CACHE_BYTES, shutil.disk_usage(make_dir(cache_dir())).total // 4)
    try:
        return max(0, int(float(told) * 1e9))
    except (ValueError, OverflowError):
        raise UsageError("must be a number of gigabytes", where=f"LADDERLM_CACHE_GB={told}") from None


def folder_bytes(folder: Path) -> int:
    """What the files below `folder` take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            stat = path.lstat()
            total += stat.st_size if path.is_file() and not path.is_symlink() else 0
    return total


def try_lock(fd: int) -> bool:
    """Locks an open file for this process and those that inherit it; false where another holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The JSON in `path`. NotFound or FormatError with its name otherwise."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"not valid JSON: {error}", where=str(path)) from None


def write_json(path: Path, data: Any) -> None:
    with atomic_file(path) as f:
        json.dump(data, f, indent=2, ensure_ascii=False)
        f.write("\n")


# --- Runs ---------------------------------------------------------------------------------------------------------


def new_run(kind: str, config: Mapping[str, Any], *, path: Path | None = None) -> Run:
    """Creates a run folder (named by kind and time unless `path` is given) and writes its config.json."""
    if path is None:
        path = runs_dir() / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    make_dir(path / "checkpoints")
    run = Run(path)
    write_json(run.config, {"format": 1, "kind": kind, "created": time.time(), **config})
    return run


def open_run(name: str | Path) -> Run:
    """An existing run by id or path."""
    for path in (Path(name), runs_dir() / str(name)):
        if (path / "config.json").exists():
            return Run(path)
    raise NotFound(f"no such run {str(name)!r}", where=str(runs_dir()), cure="see: ladderlm runs")


def list_runs() -> list[Run]:
    root = runs_dir()
    return [Run(p.parent) for p in sorted(root.glob("*/config.json"))] if root.exists() else []


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line, flushed, so that a killed run keeps what it wrote."""
    with storage_errors(path), path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The complete lines of `path`; a torn last line (the process was killed) is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise FormatError("not valid JSON", where=f"{path}:{number}") from None
    return rows


# --- The database -------------------------------------------------------------------------------------------------


def database(*, shared: bool = False) -> sqlite3.Connection:
    """The workspace's database, migrated. A newer schema is refused; before a migration the file is backed up.

    `shared`: threads may hand the connection to one another.
    """
    path = home() / "ladderlm.sqlite"
    make_dir(path.parent)
    with storage_errors(path):
        try:
            db = sqlite3.connect(path, timeout=30, check_same_thread=not shared)
            db.execute("PRAGMA journal_mode=WAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise StorageError("cannot open the database", where=str(path), cure=str(error)) from error
        except sqlite3.DatabaseError as error:
            raise FormatError("not a database", where=str(path), cure="move it away") from error
    if version > SCHEMA_VERSION:
        raise FormatError("written by a newer LadderLM", where=str(path), cure="upgrade, or set LADDERLM_HOME")
    if version < SCHEMA_VERSION:
        with lock(path):
            _migrate(db, path)
    return db


@contextlib.contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """A connection of its own, whose rows have names; what the block does is on the disk when it ends, or undone."""
    with contextlib.closing(database()) as db:
        db.row_factory = sqlite3.Row
        db.execute("BEGIN IMMEDIATE")
        with db:
            yield db


@contextlib.contextmanager
def reading() -> Iterator[sqlite3.Connection]:
    """A connection of its own to look things up, whose rows have names. It never waits for those who write."""
    with contextlib.closing(database()) as db:
        db.row_factory = sqlite3.Row
        yield db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]  # again: another process may have been first
    if 0 < version < SCHEMA_VERSION:
        # not a copy of the file: what was written last may still lie in the log beside it
        with contextlib.closing(sqlite3.connect(path.with_suffix(f".v{version}.sqlite"))) as kept:
            db.backup(kept)
    for number, script in enumerate(_SCHEMA[version:], version + 1):
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number}; COMMIT;")
