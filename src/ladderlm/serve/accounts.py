"""Users and their keys: who a request comes from, and what they may do.

A key is shown once, when it is made. What is kept is its SHA-256: the secret part is 256 random bits, which no table of
hashes can hold. Where neither a key was ever made nor $LADDERLM_API_KEY is set, everybody is the local admin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ladderlm import store
from ladderlm.errors import AuthError, Conflict, Forbidden, NotFound, UsageError, nearest
from ladderlm.types import Value

Role = Literal["admin", "user"]
Scope = Literal["chat", "embed", "files", "train", "admin"]
ROLES: tuple[Role, ...] = ("admin", "user")
SCOPES: tuple[Scope, ...] = ("chat", "embed", "files", "train", "admin")
LOCAL = "user-local"  # whom a machine without keys belongs to, and the single key
PREFIX = "sk-ladder-"
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-[\w-]{{20,}}")
_NOTHING = secrets.token_bytes(32)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


@dataclass(frozen=True, slots=True)
class Limits(Value):
    """Of one key; None: no limit. Tokens are those read and written."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


@dataclass(frozen=True, slots=True)
class Who:
    """The principal of a request. `key` is the key's id, "" where none was needed."""

    user: str
    key: str
    role: Role
    scopes: frozenset[str]
    limits: Limits = Limits()

    @property
    def admin(self) -> bool:
        return self.role == "admin" and "admin" in self.scopes

    def may_see(self, user: str) -> bool:
        """Whether what belongs to `user` is there for this one."""
        return self.admin or user == self.user


EVERYBODY = Who(LOCAL, "", "admin", frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class User(Value):
    id: str
    name: str
    role: Role
    created: float
    disabled: float | None = None


@dataclass(frozen=True, slots=True)
class Key(Value):
    """All of a key but its secret; `prefix` is what it begins with."""

    id: str
    user: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None
    used: float | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def prefix(self) -> str:
        return PREFIX + self.id.removeprefix("key-")


class Accounts:
    """`single`: a key beside those of the database, the local admin's. `guarded`: a key is needed in any case."""

    def __init__(self, single: str | None = None, *, guarded: bool = False) -> None:
        self._single = _hash(single) if single else None
        self._guarded = guarded
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def who(self, given: str | None) -> Who:
        """Whose request this is. AuthError for a key that is missing, wrong, expired or revoked."""
        if given is None:
            if self._guarded or self._single or self._look("SELECT 1 FROM keys LIMIT 1"):
                raise AuthError("a key is missing", where="Authorization", cure="send: Bearer KEY")
            return EVERYBODY
        hashed = _hash(given)
        if self._single and hmac.compare_digest(hashed, self._single):
            return EVERYBODY
        found = _KEY.fullmatch(given)
        row = found and self._look(
            "SELECT keys.*, role, disabled FROM keys JOIN users ON users.id = keys.user WHERE keys.id = ?",
            (f"key-{found[1]}",),
        )
        if not hmac.compare_digest(hashed, row["hash"] if row else _NOTHING) or not row:
            if not (self._guarded or self._single or self._look("SELECT 1 FROM keys LIMIT 1")):
                return EVERYBODY  # clients send some key wherever they call
            raise AuthError("a key is missing or wrong", where="Authorization", cure="send: Bearer KEY")
        if row["revoked"] is not None or row["disabled"] is not None:
            raise AuthError("the key was revoked", where="Authorization", cure="ask for a new one")
        if row["expires"] is not None and row["expires"] <= time.time():
            raise AuthError("the key has expired", where="Authorization", cure="ask for a new one")
        limits = Limits.from_dict(json.loads(row["limits"]))
        return Who(row["user"], row["id"], row["role"], frozenset(json.loads(row["scopes"])), limits)

    def owner(self, user: str, key: str) -> Who | None:
        """The principal that `user` was when they began something with `key`; None when they may no longer."""
        if not key or key == EVERYBODY.key:
            return EVERYBODY if user == LOCAL else None
        row = self._look(
            "SELECT keys.*, role, disabled FROM keys JOIN users ON users.id = keys.user WHERE keys.id = ?", (key,)
        )
        if not row or row["revoked"] is not None or row["disabled"] is not None or row["user"] != user:
            return None
        limits = Limits.from_dict(json.loads(row["limits"]))
        return Who(user, key, row["role"], frozenset(json.loads(row["scopes"])), limits)

    def _look(self, query: str, values: Sequence[Any] = ()) -> Any:
        """The first row. A look-up by key takes microseconds and never waits for a writer."""
        with self._lock:
            if self._db is None:
                self._db = store.database(shared=True)
                self._db.row_factory = sqlite3.Row
            return self._db.execute(query, values).fetchone()


# --- Users and keys -----------------------------------------------------------------------------------------------


def create_user(name: str, role: Role, by: Who = EVERYBODY) -> User:
    _check_name(name)
    if role not in ROLES:
        raise UsageError(f"no role {role!r}", where="role", cure=nearest(role, ROLES))
    user = User(f"user-{secrets.token_hex(6)}", name, role, time.time())
    with store.transaction() as db:
        if db.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone():
            raise Conflict("there is a user of that name", where="name", cure="choose another")
        db.execute("INSERT INTO users VALUES (?, ?, ?, ?, NULL)", (user.id, name, role, user.created))
        _note(db, by, "create user", user.id, role)
    return user


def list_users() -> list[User]:
    with store.reading() as db:
        return [User(**dict(row)) for row in db.execute("SELECT * FROM users ORDER BY rowid")]


def find_user(name: str) -> User:
    """By id or name."""
    found = next((u for u in list_users() if name in (u.id, u.name)), None)
    if found is None:
        raise NotFound(f"no user {name!r}", cure="see: ladderlm users list")
    return found


def change_user(id: str, *, role: Role | None = None, disabled: bool | None = None, by: Who = EVERYBODY) -> User:
    """A disabled user's keys are refused until they are enabled again."""
    user = find_user(id)
    if user.id == LOCAL:
        raise Forbidden("the local admin is what this machine belongs to: they stay as they are", where="id")
    off = user.disabled if disabled is None else (time.time() if disabled else None)
    with store.transaction() as db:
        db.execute("UPDATE users SET role = ?, disabled = ? WHERE id = ?", (role or user.role, off, user.id))
        _note(db, by, "change user", user.id, f"role={role or user.role} disabled={off is not None}")
    return find_user(user.id)


def create_key(
    name: str, user: str = LOCAL, *, scopes: Iterable[str] | None = None, expires: float | None = None,
    limits: Limits | None = None, by: Who = EVERYBODY,
) -> tuple[Key, str]:  # fmt: skip
    """The key and its text, which is not kept. `expires` is a time; `scopes` default to all that the role has."""
    _check_name(name)
    owner = find_user(user)
    allowed = SCOPES if owner.role == "admin" else tuple(s for s in SCOPES if s != "admin")
    chosen = tuple(sorted(set(allowed if scopes is None else scopes)))
    for scope in chosen:
        if scope not in SCOPES:
            raise UsageError(f"no scope {scope!r}", where="scopes", cure=nearest(scope, SCOPES))
        if scope not in allowed:
            raise Conflict(f"a {owner.role} has no scope {scope!r}", where="scopes")
    if expires is not None and expires <= time.time():
        raise UsageError("the key would have expired already", where="expires_at")
    limits = limits or Limits()
    number = secrets.token_hex(6)
    text = f"{PREFIX}{number}-{secrets.token_urlsafe(32)}"
    key = Key(f"key-{number}", owner.id, name, chosen, time.time(), expires, limits=limits)
    row = (key.id, key.user, name, _hash(text), json.dumps(chosen), json.dumps(limits.to_dict()), key.created, expires)
    with store.transaction() as db:
        db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)", row)
        _note(db, by, "create key", key.id, f"user={owner.id} scopes={','.join(chosen)}")
    return key, text


def list_keys(user: str | None = None) -> list[Key]:
    """All, or those of one user, in the order they were made."""
    where, values = ("", ()) if user is None else ("WHERE user = ?", (user,))
    with store.reading() as db:
        return [_key(row) for row in db.execute(f"SELECT * FROM keys {where} ORDER BY rowid", values)]  # noqa: S608


def revoke_key(id: str, by: Who = EVERYBODY) -> Key:
    """Refused from now on. NotFound for a key that is not there, or not theirs."""
    wanted = id if id.startswith("key-") else "key-" + id.removeprefix(PREFIX)[:12]
    with store.transaction() as db:
        row = db.execute("SELECT * FROM keys WHERE id = ?", (wanted,)).fetchone()
        if row is None or not by.may_see(row["user"]):
            raise NotFound(f"no key {id!r}"[:80], where="key")
        if row["revoked"] is None:
            db.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), wanted))
            _note(db, by, "revoke key", wanted, "")
        return _key(db.execute("SELECT * FROM keys WHERE id = ?", (wanted,)).fetchone())


# --- Audit -----------------------------------------------------------------------------------------------------------


def audit(limit: int = 100) -> list[dict[str, Any]]:
    """What admins did, the latest first."""
    with store.reading() as db:
        return [dict(row) for row in db.execute("SELECT * FROM audit ORDER BY id DESC LIMIT ?", (limit,))]


def note(by: Who, act: str, object: str, detail: str = "") -> None:
    """A line of the audit log."""
    with store.transaction() as db:
        _note(db, by, act, object, detail)


def _note(db: sqlite3.Connection, by: Who, act: str, object: str, detail: str) -> None:
    row = (time.time(), by.user, by.key, act, object, detail)
    db.execute("INSERT INTO audit (time, user, key, act, object, detail) VALUES (?, ?, ?, ?, ?, ?)", row)


def _key(row: sqlite3.Row) -> Key:
    return Key(
        row["id"], row["user"], row["name"], tuple(json.loads(row["scopes"])), row["created"], row["expires"],
        row["revoked"], row["used"], Limits.from_dict(json.loads(row["limits"])),
    )  # fmt: skip


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or not name.strip():
        raise UsageError("a name has 1 to 100 characters, none of them control characters", where="name")
