"""GET /v1/models: what is on offer."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ladderlm.serve.models import Models
from ladderlm.serve.server import Here, Object
from ladderlm.serve.wire.models import ModelAnswer, ModelList

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


def _entry(models: Models, name: str) -> Object:
    told = {"state": models.state(name), "images": models.sees(name)}
    return {"id": name, "object": "model", "created": 0, "owned_by": "ladderlm", **told}
