"""The application: the routes, what every request passes on its way to them, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import mimetypes
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ladderlm import __version__, store
from ladderlm.errors import LadderError, StorageError, UsageError, outcome
from ladderlm.serve import answers, trail
from ladderlm.serve.accounts import Accounts
from ladderlm.serve.batches import Batches
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.door import POLICY, READING, Door
from ladderlm.serve.files import sweep
from ladderlm.serve.images import Images
from ladderlm.serve.log import RequestLog, forget
from ladderlm.serve.meter import Meter
from ladderlm.serve.metrics import Metrics
from ladderlm.serve.models import Models
from ladderlm.serve.quotas import Quotas
from ladderlm.serve.responses import fail_orphans, last_row
from ladderlm.serve.routes import (
    accounts,
    batches,
    chat,
    chats,
    conversations,
    files,
    jobs,
    messages,
    metrics,
    models,
    raw,
    responses,
    runs,
    sockets,
    tokens,
    usage,
)
from ladderlm.serve.server import Server
from ladderlm.serve.telemetry import Telemetry
from ladderlm.serve.trail import Trail, Trails
from ladderlm.serve.wire.base import ErrorBody, complaint
from ladderlm.serve.wire.messages import error_body as anthropic_error

_log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
mimetypes.add_type("application/manifest+json", ".webmanifest")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
IMAGE_LIMIT = 32 * 2**20  # bytes of a body that may hold images
TIDY = 600.0  # seconds
ENDING = 5.0  # seconds that responses in the background have, at the end, to be kept as they are
PROBES = ("/health", "/ready", "/metrics")  # which need no key
ROUTERS = (
    metrics.router,
    models.router,
    chat.router,
    raw.router,
    responses.router,
    conversations.router,
    sockets.router,
    messages.router,
    tokens.router,
    chats.router,
    runs.router,
    accounts.router,
    usage.router,
    files.router,
    batches.router,
    jobs.router,
)
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "what is wrong with the request"},
    "5XX": {"model": ErrorBody, "description": "what went wrong here"},
}


def build_app(
    catalogue: Models,
    *,
    bridge: Bridge | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK_NAMES,
    key: str | None = None,
    guarded: bool = False,
    body_limit: int = 4 * 2**20,
    image_limit: int = IMAGE_LIMIT,
    upload_limit: int = 512 * 2**20,
    images: Images | None = None,
    timeout: float = 600.0,
    log: RequestLog | None = None,
    embed: tuple[str, ...] = (),
    telemetry: Telemetry | None = None,
) -> FastAPI:
    """The ASGI application.

    `hosts` are the names it answers to (None: any), `key` is the local admin's beside those of the database; `guarded`:
    a key is needed though there is none yet. Limits are in bytes, `timeout` in seconds ends a generation. `embed`:
    origins of the sites that may show the chat widget. `images`: whether images are fetched, and how. `telemetry` sends
    traces and metrics to a collector.
    """
    log, known = log or RequestLog(), Accounts(key, guarded=guarded)
    handlers: Any = {
        LadderError: _failed, HTTPException: _refused, RequestValidationError: _invalid, Exception: _failed,
    }  # fmt: skip
    app = FastAPI(
        title="LadderLM", version=__version__, docs_url=None, redoc_url=None, exception_handlers=handlers,
        generate_unique_id_function=_operation, responses=REFUSALS, lifespan=_living,
    )  # fmt: skip
    bridge, quotas = bridge or Bridge(), Quotas()
    watched = Metrics(catalogue, lambda: bridge.draining)
    bridge.meter = _meters(watched, capture=log.content or (telemetry is not None and telemetry.content))
    app.state.server = Server(
        catalogue, bridge, timeout, watched, log, Batches(known), images=images or Images()
    )  # fmt: skip
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(_PageAt("/", _Page(embed)))
    page = {"/" + path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    app.add_middleware(
        Door, hosts=hosts, accounts=known, quotas=quotas, public={"/", *PROBES, *page},
        body_limit=body_limit, image_limit=image_limit, upload_limit=upload_limit,
    )  # fmt: skip

    def ended(request: Trail) -> None:
        watched.answered(request)
        if request.entered:
            quotas.spend(request.who, request.usage.prompt_tokens + request.usage.completion_tokens)
            if request.method not in READING:
                log.put(request)
        if telemetry is not None:
            telemetry.answered(request)

    app.add_middleware(Trails, ended=ended, body=log.content or telemetry is not None)
    return app


@contextlib.asynccontextmanager
async def _living(app: FastAPI) -> AsyncIterator[None]:
    """What runs beside the requests."""
    server: Server = app.state.server
    server.batches.start(app)
    server.trainer.start()
    claim = contextlib.ExitStack()
    orphans = asyncio.create_task(_orphans(claim, await asyncio.to_thread(_last_row)))
    tidying = asyncio.create_task(_tidying(server.log))
    yield
    tidying.cancel()
    server.bridge.close()
    if server.background:  # they are told that the server ends, and keep it
        await asyncio.wait(tuple(server.background.values()), timeout=ENDING)
    for task in tuple(server.background.values()):
        task.cancel()
    await asyncio.wait((orphans,))
    claim.close()
    await server.batches.stop()
    await asyncio.to_thread(server.trainer.stop)
    server.log.close()


def _last_row() -> int:
    try:
        return last_row()
    except (LadderError, sqlite3.Error, OSError):
        _log.exception("the stored responses cannot be read")
        return 0


async def _orphans(claim: contextlib.ExitStack, last: int) -> None:
    """Ends the responses, up to row `last`, of a server that was killed, unless another one of this workspace runs:
    they may be its own."""
    try:
        claim.enter_context(store.lock(store.home() / "responses", timeout=0))
        await asyncio.to_thread(fail_orphans, last)
    except StorageError:
        return
    except (LadderError, sqlite3.Error, OSError):
        _log.exception("responses that were left undone could not be ended")


async def _tidying(log: RequestLog) -> None:
    """Removes what is older than it may be, now and then."""
    while True:
        try:
            await asyncio.to_thread(sweep)
            if log.days:
                await asyncio.to_thread(forget, log.days)
        except (LadderError, sqlite3.Error, OSError):
            _log.exception("what is too old could not be removed")
        await asyncio.sleep(TIDY)


def _meters(watched: Metrics, *, capture: bool) -> Callable[[], Meter]:
    """Makes the meter of a stream, for the request that opens it."""

    def meter() -> Meter:
        request = trail.current()
        model = request.model if request is not None else ""
        made = Meter(model or "unknown", watched, capture=capture)
        if request is not None:
            request.meters.append(made)
        return made

    return meter


class _PageAt(Mount):
    """Everywhere but on the API's paths, where a wrong method is told from a path that is not there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or scope["path"].startswith("/v1/") or _methods(scope):
            return Match.NONE, {}
        return super().matches(scope)


class _Page(StaticFiles):
    """The page's files. A browser keeps what has its hash in its name, and asks again for all else. The widget may
    stand in a frame of the sites in `embed`; nowhere without them."""

    def __init__(self, embed: tuple[str, ...]) -> None:
        super().__init__(directory=PAGE, html=True, check_dir=False)
        self._embed = embed

    async def check_config(self) -> None:
        """A page that is not there is told by `get_response`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if not (PAGE / "index.html").exists():
            raise HTTPException(404, "the page is not built: installing the package builds it (pip install -e .)")
        return await super().get_response(path, scope)

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        path = Path(full_path)
        name, kept = path.name, path.parent.name == "assets"
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
        if self._embed and name == "widget.html":
            policy = POLICY.replace("frame-ancestors 'none'", f"frame-ancestors {' '.join(self._embed)}")
            response.headers["content-security-policy"] = policy
            response.headers["x-frame-options"] = "ALLOWALL"  # no such value: the policy above decides
        elif self._embed and name == "widget.js":
            response.headers["cross-origin-resource-policy"] = "cross-origin"
        return response


def origins(given: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers name them. UsageError for what is none."""
    for origin in given:
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", origin):
            raise UsageError("not an origin", where=f"embed={origin}", cure="such as https://www.example.org")
    return tuple(given)


def _methods(scope: Scope) -> set[str]:
    """Those that the API knows for a path."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    found = [route for route in routes if route.matches(scope)[0] != Match.NONE]
    exact = [route for route in found if route.path == scope["path"]]  # "/responses/input_tokens" is no response's id
    return {method for route in exact or found for method in route.methods or ()}


def _operation(route: APIRoute) -> str:
    return route.name


async def _failed(request: Request, error: Exception) -> Response:
    status = outcome(error).http_status
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(math.ceil(getattr(error, "after", None) or 1))
    if request.app.state.server.bridge.draining:
        headers["connection"] = "close"
    return _told(request, answers.error_body(error), status, headers)


def _told(request: Request, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the form of the API that was called."""
    if request.url.path.startswith("/v1/messages"):
        body = anthropic_error(body["error"]["message"], status)
    return JSONResponse(body, status, headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    """A body or parameter that is not as the schema says."""
    errors = [{**e, "loc": e["loc"][1:]} for e in error.errors() if e["loc"][0] == "body"]
    if any(e["loc"][0] != "body" for e in error.errors()):
        first = error.errors()[0]
        found = UsageError(first["msg"], where=".".join(map(str, first["loc"][1:])))
    elif isinstance(error.body, dict):
        found = complaint(errors, error.body)
    else:
        found = UsageError("the body must be a JSON object", cure="send it as content-type: application/json")
    return _told(request, answers.error_body(found), 400)


async def _refused(request: Request, error: HTTPException) -> Response:
    """A path or method that is not there, or a body that is too large."""
    body = answers.error_body(LadderError(error.detail, where=request.url.path))
    body["error"]["type"] = "not_found_error" if error.status_code == 404 else "invalid_request_error"
    headers = dict(error.headers or {})
    if error.status_code == 405:  # a path may have several routes, of a method each
        headers["Allow"] = ", ".join(sorted(_methods(request.scope)))
    return _told(request, body, error.status_code, headers)
