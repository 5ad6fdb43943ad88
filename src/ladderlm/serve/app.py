"""The application: the routes, what every request passes on its way to them, and the page."""

from __future__ import annotations

from collections.abc import Mapping
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

from ladderlm import __version__
from ladderlm.errors import LadderError, UsageError, outcome
from ladderlm.serve import answers
from ladderlm.serve.bridge import Bridge
from ladderlm.serve.door import Door
from ladderlm.serve.models import Models
from ladderlm.serve.routes import chat, messages, models, raw, responses, tokens
from ladderlm.serve.server import Server
from ladderlm.serve.wire.base import ErrorBody, complaint
from ladderlm.serve.wire.messages import error_body as anthropic_error

PAGE = Path(__file__).parent / "page"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ROUTERS = (models.router, chat.router, raw.router, responses.router, messages.router, tokens.router)
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
    body_limit: int = 4 * 2**20,
    timeout: float = 600.0,
) -> FastAPI:
    """The ASGI application.

    `hosts` are the names it answers to (None: any), `key` guards /v1, `body_limit` is in bytes, `timeout` in seconds
    ends a generation.
    """
    handlers: Any = {
        LadderError: _failed, HTTPException: _refused, RequestValidationError: _invalid, Exception: _failed,
    }  # fmt: skip
    app = FastAPI(
        title="LadderLM", version=__version__, docs_url=None, redoc_url=None, exception_handlers=handlers,
        generate_unique_id_function=_operation, responses=REFUSALS,
    )  # fmt: skip
    app.state.server = Server(catalogue, bridge or Bridge(), timeout)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(_PageAt("/", _Page(directory=PAGE, html=True)))
    app.add_middleware(Door, hosts=hosts, key=key, body_limit=body_limit)
    return app


class _PageAt(Mount):
    """Everywhere but on the API's paths, where a wrong method is told from a path that is not there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].startswith("/v1/") or _methods(scope) else super().matches(scope)


class _Page(StaticFiles):
    """The page's files; a browser asks again each time, and gets "not modified"."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


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
    headers = {"retry-after": "1"} if status == 429 else None
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
