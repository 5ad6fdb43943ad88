"""/v1/keys, /v1/users, /v1/me and /v1/audit: who may call, and what admins did about it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from ladderlm.serve import accounts, personal
from ladderlm.serve.server import Admin, Caller, Here
from ladderlm.serve.wire.accounts import (
    AuditList,
    AuditRow,
    Erased,
    KeyBody,
    KeyList,
    KeyObject,
    LimitFields,
    MeObject,
    UserBody,
    UserChange,
    UserList,
    UserObject,
)

router = APIRouter(prefix="/v1", tags=["accounts"])


@router.get("/me")
def me(who: Caller) -> MeObject:
    """Who is asking, by their key."""
    return MeObject(
        user=who.user, name=accounts.find_user(who.user).name, key=who.key, role=who.role, scopes=sorted(who.scopes),
        limits=LimitFields(**who.limits.to_dict()),
    )  # fmt: skip


@router.get("/keys")
def list_keys(who: Caller) -> KeyList:
    """One's own keys; an admin's list holds everybody's."""
    return KeyList(data=[KeyObject.of(key) for key in accounts.list_keys(None if who.admin else who.user)])


@router.post("/keys")
def create_key(body: KeyBody, who: Admin) -> KeyObject:
    """A new key. Its text is in this answer and nowhere else."""
    expires = None if body.expires_in is None else time.time() + body.expires_in
    limits = body.limits.limits if body.limits else None
    key, text = accounts.create_key(
        body.name, body.user or who.user, scopes=body.scopes, expires=expires, limits=limits, by=who
    )
    return KeyObject.of(key, text)


@router.delete("/keys/{id}")
def revoke_key(id: str, who: Caller) -> KeyObject:
    """The key is refused from now on."""
    return KeyObject.of(accounts.revoke_key(id, who))


@router.get("/users")
def list_users(who: Admin) -> UserList:
    """Everybody."""
    return UserList(data=[UserObject.of(user) for user in accounts.list_users()])


@router.post("/users")
def create_user(body: UserBody, who: Admin) -> UserObject:
    """A new user, without a key yet."""
    return UserObject.of(accounts.create_user(body.name, body.role or "user", who))


@router.get("/users/{id}")
def user(id: str, who: Admin) -> UserObject:
    """One user, by id or name."""
    return UserObject.of(accounts.find_user(id))


@router.post("/users/{id}")
def change_user(id: str, body: UserChange, who: Admin) -> UserObject:
    """Another role, or disabled: then their keys are refused."""
    return UserObject.of(accounts.change_user(id, role=body.role, disabled=body.disabled, by=who))


@router.get("/users/{id}/export", response_class=StreamingResponse)
def export_user(id: str, who: Admin) -> StreamingResponse:
    """All that is kept of a user, as JSON lines."""
    rows = personal.export(id, who)

    def lines() -> Iterator[str]:
        for row in rows:
            yield json.dumps(row, ensure_ascii=False) + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")


@router.delete("/users/{id}")
def erase_user(id: str, who: Admin, server: Here) -> Erased:
    """Removes a user and all that is kept of them."""
    found = accounts.find_user(id)
    return Erased(id=found.id, rows=personal.erase(found.id, who))


@router.get("/audit")
def audit(who: Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditList:
    """What admins did, the latest first."""
    return AuditList(data=[AuditRow(**row) for row in accounts.audit(limit)])
