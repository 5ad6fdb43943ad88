"""/v1/batches: files of requests, answered in the background."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ladderlm.serve import batches
from ladderlm.serve.batches import Batch
from ladderlm.serve.server import Caller, Here
from ladderlm.serve.wire.batches import BatchBody, BatchList, BatchObject

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post("")
def create_batch(body: BatchBody, who: Caller, server: Here) -> BatchObject:
    """A batch of the requests in a file. When this answers it survives the server."""
    made = batches.create(who, body.input_file_id, body.endpoint, body.metadata)
    server.batches.wake()
    return _told(made)


@router.get("")
def list_batches(
    who: Caller,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """One's own, the latest first."""
    found, more = batches.listed(who, after, limit)
    data = [_told(batch) for batch in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=first, last_id=last, has_more=more)


@router.get("/{id}")
def batch(id: str, who: Caller) -> BatchObject:
    """How far it is."""
    return _told(batches.get(id, who))


@router.post("/{id}/cancel")
def cancel_batch(id: str, who: Caller, server: Here) -> BatchObject:
    """Ends it; what was answered by then is in its output file."""
    found = batches.cancel(id, who)
    server.batches.wake()
    return _told(found)


def _told(batch: Batch) -> BatchObject:
    return BatchObject.model_validate(batch.to_wire())
