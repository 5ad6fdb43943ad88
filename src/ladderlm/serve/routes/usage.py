"""GET /v1/usage and /v1/requests: what was asked for, by whom, and what it took."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse

from ladderlm.errors import NotFound
from ladderlm.serve import log
from ladderlm.serve.log import Filter
from ladderlm.serve.server import Caller
from ladderlm.serve.wire.accounts import RequestList, RequestRow, UsageList, UsageRow

router = APIRouter(prefix="/v1", tags=["usage"])
Word = Annotated[str, Query(max_length=500)]
When = Annotated[float | None, Query(ge=0, le=10**11, description="seconds since 1970")]
EXPORTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/jsonl": {}, "text/csv": {}}, "description": "a list, or a file"}
}


async def _filter(
    who: Caller, user: Word = "", key: Word = "", model: Word = "", since: When = None, until: When = None
) -> Filter:
    """What is asked for; for all but admins of what is their own."""
    if not who.may_see(user or who.user):
        raise NotFound(f"no user {user!r}", where="user")
    return Filter(user=user if who.admin else who.user, key=key, model=model, since=since, until=until)


Asked = Annotated[Filter, Depends(_filter)]


@router.get("/usage")
def usage(
    asked: Asked, group_by: Annotated[list[Literal["day", "user", "key", "model"]] | None, Query()] = None
) -> UsageList:
    """Sums of requests, tokens and cost, by day where nothing is said. They stay when the log forgets."""
    names = list(dict.fromkeys(group_by or ["day"]))
    return UsageList(data=[UsageRow(**row) for row in log.usage(asked, names)])


@router.get("/requests", response_model=RequestList, responses=EXPORTS)
def requests(
    asked: Asked,
    route: Word = "",
    status: Annotated[int | None, Query(ge=2, le=599, description="404, or 4 for all of 4xx")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    format: Literal["json", "jsonl", "csv"] = "json",
) -> RequestList | Response:
    """The request log, the latest first; jsonl and csv give all of it, the oldest first."""
    wanted = Filter(asked.user, asked.key, asked.model, route, status, asked.since, asked.until)
    if format != "json":
        kind = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}[format]
        headers = {"content-disposition": f'attachment; filename="requests.{format}"'}
        return StreamingResponse(log.exported(wanted, format), media_type=kind, headers=headers)
    rows = log.requests(wanted, limit=limit + 1, after=after)
    return RequestList(data=[RequestRow(**row) for row in rows[:limit]], has_more=len(rows) > limit)
