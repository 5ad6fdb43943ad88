"""GET /v1/models, /health and /ready: what is on offer, and whether it is open."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ladderlm import __version__
from ladderlm.serve.models import Models
from ladderlm.serve.server import Here, Object
from ladderlm.serve.wire.models import Health, ModelAnswer, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses={200: {"model": ModelList}})
async def models(server: Here) -> Response:
    """The named models and every folder in the workspace, as it appears."""
    data = [_entry(server.models, name) for name in server.models.names()]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", responses={200: {"model": ModelAnswer}})
async def model(name: str, server: Here) -> Response:
    """One model."""
    return JSONResponse(_entry(server.models, server.models.resolve(name)))


@router.get("/health", responses={200: {"model": Health}, 503: {"model": Health, "description": "loading, or failed"}})
async def health(server: Here) -> Response:
    """200 once every named model that is being opened is open."""
    states = {name: server.models.state(name) for name in server.models.named}
    status = next((s for s in ("loading", "failed") if s in states.values()), "ready")
    body: Object = {"status": status, "version": __version__, "models": states}
    if status == "failed":
        body["error"] = next(filter(None, map(server.models.error, states)), "")
    return JSONResponse(body, 200 if status == "ready" else 503)


def _entry(models: Models, name: str) -> Object:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ladderlm", "state": models.state(name)}
