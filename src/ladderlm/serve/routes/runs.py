"""/v1/runs: training runs, for admins only, as their settings name files; what is here of models; and a look at a
fine-tuning before it is begun."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from ladderlm.models.catalogue import list_models
from ladderlm.serve import preview, runs
from ladderlm.serve.server import Admin, Here
from ladderlm.serve.wire.runs import PreviewBody

router = APIRouter(prefix="/v1", tags=["runs"])


@router.get("/runs")
def list_runs(who: Admin) -> Response:
    """Every run of this workspace, the latest first."""
    return JSONResponse({"object": "list", "data": runs.list_runs()})


@router.get("/runs/{run}")
def get_run(run: str, who: Admin) -> Response:
    """Settings, result and report."""
    return JSONResponse(runs.get_run(run))


@router.get("/runs/{run}/metrics")
def run_metrics(run: str, who: Admin, after: Annotated[int, Query(ge=0)] = 0) -> Response:
    """The curves, from line `after` on."""
    return JSONResponse(runs.metrics(run, after))


@router.get("/runs/{run}/samples")
def run_samples(run: str, who: Admin) -> Response:
    """What the model wrote on the way."""
    return JSONResponse({"object": "list", "data": runs.samples(run)})


@router.get("/catalogue")
def catalogue(server: Here) -> Response:
    """What is served, what else is here, and what can be fetched: state, size, licence."""
    served = server.models.names()
    data = []
    for entry in list_models():
        told = {**entry.to_dict(), "path": None, "here": entry.here}
        told["state"] = server.models.state(entry.name) if entry.name in served else None
        data.append(told)
    known = {entry["name"] for entry in data}
    others = [name for name in served if name not in known]
    data = [
        {"name": name, "origin": "named", "here": True, "state": server.models.state(name)} for name in others
    ] + data
    return JSONResponse({"object": "list", "data": data})


@router.post("/runs/preview")
def preview_tuning(body: PreviewBody, server: Here) -> Response:
    """The first records as the model would read them, what is learnt marked; lengths, bad rows, time and memory."""
    return JSONResponse(preview.preview(body, server.models.reference(server.models.resolve(body.model))))
