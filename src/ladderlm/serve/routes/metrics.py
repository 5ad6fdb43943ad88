"""GET /metrics, /health and /ready: for those who watch over the server."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from ladderlm import __version__
from ladderlm.serve.server import Here, Object
from ladderlm.serve.wire.models import Health

router = APIRouter(tags=["watching"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, server: Here) -> Response:
    """What Prometheus reads."""
    text, kind = server.metrics.text(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": kind, "cache-control": "no-store"})


@router.get("/health", responses={200: {"model": Health}})
async def health(server: Here) -> Object:
    """200 as long as the server answers at all."""
    return _state(server)


@router.get("/ready", responses={200: {"model": Health}, 503: {"model": Health, "description": "loading, or draining"}})
async def ready(server: Here) -> Response:
    """200 while requests are welcome: every named model that is being opened is open, and the server is not ending."""
    body = _state(server)
    return JSONResponse(body, 200 if body["status"] == "ready" else 503)


def _state(server: Here) -> Object:
    states = {name: server.models.state(name) for name in server.models.named}
    states |= {upstream.url: upstream.state for upstream in server.models.upstreams}
    status = next((s for s in ("loading", "failed") if s in states.values()), "ready")
    status = "draining" if server.bridge.draining else status
    body: Object = {"status": status, "version": __version__, "models": states}
    if status == "failed":
        told = [*map(server.models.error, states), *(upstream.error for upstream in server.models.upstreams)]
        body["error"] = next(filter(None, told), "")
    return body
