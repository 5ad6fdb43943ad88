"""/v1/fine_tuning/jobs: models that are trained here, and then served here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ladderlm.serve import jobs
from ladderlm.serve.server import Caller, Here
from ladderlm.serve.wire.jobs import (
    CheckpointList,
    CheckpointObject,
    EventList,
    EventObject,
    JobBody,
    JobList,
    JobObject,
)

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
After = Annotated[str | None, Query(max_length=100)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/jobs")
def create_job(body: JobBody, who: Caller, server: Here) -> JobObject:
    """Checks the data and queues a job. When this answers it survives the server."""
    made = jobs.create(who, body, server.models.reference(server.models.resolve(body.model)))
    server.trainer.wake()
    return jobs.to_wire(made)


@router.get("/jobs")
def list_jobs(who: Caller, after: After = None, limit: Limit = 20) -> JobList:
    """One's own, the latest first."""
    found, more = jobs.listed(who, after, limit)
    return JobList(data=[jobs.to_wire(job) for job in found], has_more=more)


@router.get("/jobs/{id}")
def job(id: str, who: Caller) -> JobObject:
    """How far it is, and what came of it."""
    return jobs.to_wire(jobs.get(id, who))


@router.post("/jobs/{id}/cancel")
def cancel_job(id: str, who: Caller, server: Here) -> JobObject:
    """Ends it for good."""
    found = jobs.cancel(id, who)
    server.trainer.wake()
    return jobs.to_wire(found)


@router.post("/jobs/{id}/pause")
def pause_job(id: str, who: Caller, server: Here) -> JobObject:
    """Ends its process at the next step, with a checkpoint to go on from."""
    found = jobs.pause(id, who)
    server.trainer.wake()
    return jobs.to_wire(found)


@router.post("/jobs/{id}/resume")
def resume_job(id: str, who: Caller, server: Here) -> JobObject:
    """Goes on from the checkpoint, to the same bits."""
    found = jobs.resume(id, who)
    server.trainer.wake()
    return jobs.to_wire(found)


@router.get("/jobs/{id}/events")
def job_events(id: str, who: Caller, after: After = None, limit: Limit = 20) -> EventList:
    """What it told, the latest first."""
    found, more = jobs.events(id, who, after, limit)
    return EventList(data=[EventObject(**event) for event in found], has_more=more)


@router.get("/jobs/{id}/checkpoints")
def job_checkpoints(id: str, who: Caller, after: After = None, limit: Limit = 10) -> CheckpointList:
    """Models of this job that can be used: the one that it ended with."""
    found = [CheckpointObject(**made) for made in jobs.checkpoints(jobs.get(id, who))] if after is None else []
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return CheckpointList(data=found[:limit], first_id=first, last_id=last, has_more=False)
