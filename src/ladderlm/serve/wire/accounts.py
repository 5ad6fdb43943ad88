"""Users, keys, usage and the request log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ladderlm.serve.accounts import Key, Limits, Role, Scope, User
from ladderlm.serve.wire.base import AsWhole, Wire

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$")
]
Limit = Annotated[int, Field(ge=1, le=10**12), AsWhole]
Time = Annotated[float, Field(ge=0, le=10**11)]  # seconds since 1970


class LimitFields(Wire):
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    tokens_per_month: Limit | None = None

    @property
    def limits(self) -> Limits:
        return Limits(**{name: getattr(self, name) for name in LimitFields.model_fields})


class KeyBody(Wire):
    """`user` by id or name; without one the key is the caller's own. `expires_in`: seconds."""

    name: Name
    user: str | None = None
    scopes: list[Scope] | None = None
    expires_in: Annotated[float, Field(ge=1, le=10**10)] | None = None
    limits: LimitFields | None = None


class UserBody(Wire):
    name: Name
    role: Role | None = None


class UserChange(Wire):
    role: Role | None = None
    disabled: bool | None = None


class KeyObject(Wire):
    """`key`, the secret itself, is there once: in the answer that made it."""

    object: Literal["key"] = "key"
    id: str
    prefix: str
    name: str
    user: str
    scopes: list[str]
    limits: LimitFields
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    key: str | None = None

    @classmethod
    def of(cls, key: Key, text: str | None = None) -> KeyObject:
        return cls(
            id=key.id, prefix=key.prefix, name=key.name, user=key.user, scopes=list(key.scopes),
            limits=LimitFields(**key.limits.to_dict()), created_at=int(key.created), expires_at=_whole(key.expires),
            revoked_at=_whole(key.revoked), last_used_at=_whole(key.used), key=text,
        )  # fmt: skip


class KeyList(Wire):
    object: Literal["list"] = "list"
    data: list[KeyObject]


class UserObject(Wire):
    object: Literal["user"] = "user"
    id: str
    name: str
    role: Role
    created_at: int
    disabled_at: int | None

    @classmethod
    def of(cls, user: User) -> UserObject:
        return cls(id=user.id, name=user.name, role=user.role, created_at=int(user.created),
                   disabled_at=_whole(user.disabled))  # fmt: skip


class UserList(Wire):
    object: Literal["list"] = "list"
    data: list[UserObject]


class MeObject(Wire):
    """Who is asking, and what they may do."""

    object: Literal["me"] = "me"
    user: str
    name: str
    key: str
    role: Role
    scopes: list[str]
    limits: LimitFields


class Erased(Wire):
    object: Literal["user"] = "user"
    id: str
    deleted: bool = True
    rows: dict[str, int]


class AuditRow(Wire):
    id: int
    time: float
    user: str
    key: str
    act: str
    object: str
    detail: str


class AuditList(Wire):
    object: Literal["list"] = "list"
    data: list[AuditRow]


class UsageRow(Wire):
    """Of the four names those are there that were summed by."""

    day: str | None = None
    user: str | None = None
    key: str | None = None
    model: str | None = None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: float


class UsageList(Wire):
    object: Literal["list"] = "list"
    data: list[UsageRow]


class RequestRow(Wire):
    id: int
    time: float
    request: str
    user: str
    key: str
    route: str
    model: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_ms: float | None
    total_ms: float
    cost: float | None
    finish_reason: str | None
    asked: str | None
    answered: str | None


class RequestList(Wire):
    object: Literal["list"] = "list"
    data: list[RequestRow]
    has_more: bool


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
