"""Who may see what, for everything that is stored: found by the routes themselves, so that none is forgotten."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
from fastapi.routing import APIRoute

from ladderlm import store
from ladderlm.serve import personal
from ladderlm.serve.app import ROUTERS
from ladderlm.serve.server import _admin, _who

OPEN = ("/v1/models", "/health", "/ready", "/metrics")  # what all who have a key may see


def _asks(route: APIRoute) -> bool:
    """Whether a route takes the caller into account."""
    waiting = [route.dependant]
    while waiting:
        here = waiting.pop()
        if here.call in (_who, _admin):
            return True
        waiting += here.dependencies
    return False


def test_every_route_of_stored_things_asks_who_calls() -> None:
    silent = [
        f"{sorted(route.methods)} {route.path}"
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and "{" in route.path and not route.path.startswith(OPEN) and not _asks(route)
    ]
    assert silent == []


def test_every_table_with_a_user_is_given_out_and_erased() -> None:
    """A new table with a column `user` has to be named in personal.TABLES."""
    with store.reading() as db:
        tables = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        owned = {t for t in tables if any(c["name"] == "user" for c in db.execute(f"PRAGMA table_info({t})"))}
    assert owned - {"keys", "audit"} == set(personal.TABLES)
