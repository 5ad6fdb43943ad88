"""`ladderlm keys`, `ladderlm users` and `ladderlm usage`: who may call the server, and what they asked of it.

Who can read the workspace is its admin: no key is asked for here.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ladderlm.cli import show
from ladderlm.cli.args import parse
from ladderlm.config import option
from ladderlm.errors import MissingExtra, UsageError, nearest
from ladderlm.serve import accounts, log
from ladderlm.serve.accounts import LOCAL, Limits

WHAT = ("sums", "requests", "audit")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


@dataclass(frozen=True, slots=True)
class CreateConfig:
    name: str = option(help="what the key is for: laptop, ci, anna's phone")
    user: str = option("", "whose it is, by name; made if there is nobody of that name (default: the local admin)")
    role: str = option("user", "of a user that is made", choices=accounts.ROLES)
    scopes: tuple[str, ...] = option((), f"what it may do, of {', '.join(accounts.SCOPES)}; may be repeated, or a,b")
    expires: str = option("", "after how long it is refused: 12h, 30d, 1y (default: never)")
    requests_per_minute: int | None = option(None, "most requests a minute")
    tokens_per_minute: int | None = option(None, "most tokens a minute, read and written")
    tokens_per_day: int | None = option(None, "most tokens a day")
    tokens_per_month: int | None = option(None, "most tokens a month")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class ListConfig:
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class OneConfig:
    id: str = option(help="a key's id or beginning, a user's id or name")
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class UserConfig:
    name: str = option(help="a name that nobody has")
    role: str = option("user", "what they may do", choices=accounts.ROLES)
    json: bool = option(False, "print JSON")


@dataclass(frozen=True, slots=True)
class UsageConfig:
    what: str = option("sums", "sums; requests: the log itself; audit: what admins did", positional=True)
    by: tuple[str, ...] = option(("day",), f"sums: by {', '.join(log.GROUPS)}; may be repeated, or a,b")
    user: str = option("", "of this user only, by id or name")
    key: str = option("", "of this key's id only")
    model: str = option("", "of this model only")
    route: str = option("", "requests: of this route only")
    status: int | None = option(None, "requests: of this status only; 4 for all of 4xx")
    since: str = option("", "from then on: 2026-05-01, or how long ago, as 7d")
    until: str = option("", "before then")
    format: str = option("jsonl", "of requests", choices=("jsonl", "csv"))
    json: bool = option(False, "print sums or audit as JSON")


def main(argv: list[str]) -> int:
    """ladderlm keys."""
    return _chosen("keys", argv, {
        "create": (create, "a new key; it is shown this once"), "list": (list_, "all keys, and when they were used"),
        "revoke": (revoke, "refuse a key from now on"),
    })  # fmt: skip


def users(argv: list[str]) -> int:
    """ladderlm users."""
    return _chosen("users", argv, {
        "create": (create_user, "a new user, without a key"), "list": (list_users, "everybody"),
        "export": (export, "all that is kept of a user, as JSON lines"),
        "erase": (erase, "remove a user and all that is kept of them"),
    })  # fmt: skip


def usage(argv: list[str]) -> int:
    """ladderlm usage."""
    config = parse("usage", UsageConfig, argv, description="What was asked of the server, by whom, and its cost.")
    if config.what not in WHAT:
        raise UsageError(f"nothing is called {config.what!r} here", where="usage", cure=nearest(config.what, WHAT))
    since, until = (_time(text, name) for text, name in ((config.since, "since"), (config.until, "until")))
    user = accounts.find_user(config.user).id if config.user else ""
    wanted = log.Filter(user, config.key, config.model, config.route, config.status, since, until)
    if config.what == "requests":
        for piece in log.exported(wanted, config.format):
            sys.stdout.write(piece)
        return 0
    rows: list[Any]
    rows = accounts.audit(1000) if config.what == "audit" else list(log.usage(wanted, _words(config.by)))
    _show(rows, config.json)
    return 0


def create(argv: list[str]) -> int:
    config = parse("keys create", CreateConfig, argv, description="Make a key for the server.")
    user = config.user or LOCAL
    if config.user and not any(config.user in (u.id, u.name) for u in accounts.list_users()):
        user = accounts.create_user(config.user, config.role).id  # type: ignore[arg-type]
    limits = Limits(
        config.requests_per_minute, config.tokens_per_minute, config.tokens_per_day, config.tokens_per_month
    )
    if any(value is not None and value < 1 for value in limits.to_dict().values()):
        raise UsageError("a limit is at least 1", where="keys create")
    expires = time.time() + _seconds(config.expires, "expires") if config.expires else None
    key, text = accounts.create_key(
        config.name, user, scopes=_words(config.scopes) or None, expires=expires, limits=limits
    )
    if config.json:
        show.emit_json({**key.to_dict(), "key": text})
    else:
        print(text)
        sys.stderr.write(f"{key.id} of {accounts.find_user(user).name}; it is not shown again\n")
    return 0


def list_(argv: list[str]) -> int:
    config = parse("keys list", ListConfig, argv, description="All keys.")
    names = {user.id: user.name for user in accounts.list_users()}
    rows = [
        {"id": key.id, "begins": key.prefix, "name": key.name, "user": names.get(key.user, ""),
         "scopes": ",".join(key.scopes), "created": _day(key.created), "expires": _day(key.expires),
         "used": _day(key.used), "revoked": _day(key.revoked)}
        for key in accounts.list_keys()
    ]  # fmt: skip
    _show(rows, config.json)
    return 0


def revoke(argv: list[str]) -> int:
    config = parse("keys revoke", OneConfig, argv, description="Refuse a key from now on.")
    key = accounts.revoke_key(config.id)
    show.emit_json(key.to_dict()) if config.json else print(f"{key.id} is refused from now on")
    return 0


def create_user(argv: list[str]) -> int:
    config = parse("users create", UserConfig, argv, description="A new user.")
    user = accounts.create_user(config.name, config.role)  # type: ignore[arg-type]
    show.emit_json(user.to_dict()) if config.json else print(user.id)
    return 0


def list_users(argv: list[str]) -> int:
    config = parse("users list", ListConfig, argv, description="Everybody.")
    rows = [
        {"id": u.id, "name": u.name, "role": u.role, "created": _day(u.created), "disabled": _day(u.disabled)}
        for u in accounts.list_users()
    ]
    _show(rows, config.json)
    return 0


def export(argv: list[str]) -> int:
    config = parse("users export", OneConfig, argv, description="All that is kept of a user, as JSON lines.")
    for row in _personal().export(config.id):
        print(json.dumps(row, ensure_ascii=False))
    return 0


def erase(argv: list[str]) -> int:
    config = parse("users erase", OneConfig, argv, description="Remove a user and all that is kept of them.")
    gone = _personal().erase(config.id)
    show.emit_json(gone) if config.json else print(", ".join(f"{n} {table}" for table, n in gone.items()))
    return 0


def _personal() -> Any:
    try:
        from ladderlm.serve import personal
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "pydantic", "serve") from None
    return personal


def _chosen(verb: str, argv: list[str], known: Mapping[str, tuple[Callable[[list[str]], int], str]]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<7} {about}" for name, (_, about) in known.items())
        print(
            f"usage: ladderlm {verb} {'|'.join(known)}\n\n{lines}\n\nladderlm {verb} create --help tells its options."
        )
        return 0
    if argv[0] not in known:
        sys.stderr.write(f"ladderlm {verb}: unknown verb {argv[0]!r}: {nearest(argv[0], known)}\n")
        return 2
    return known[argv[0]][0](argv[1:])


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        show.emit_json(rows)
    elif rows:
        show.table([tuple(row.values()) for row in rows], tuple(rows[0]))


def _words(given: tuple[str, ...]) -> list[str]:
    return [word.strip() for text in given for word in text.split(",") if word.strip()]


def _seconds(text: str, where: str) -> float:
    """ "30d" in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdwy])", text.strip())
    if found is None:
        raise UsageError(f"not a length of time: {text!r}", where=where, cure="such as 12h, 30d or 1y")
    return float(found[1]) * _UNITS[found[2]]


def _time(text: str, where: str) -> float | None:
    """A day, or so long ago."""
    if not text:
        return None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d"))
    except ValueError:
        return time.time() - _seconds(text, where)


def _day(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
