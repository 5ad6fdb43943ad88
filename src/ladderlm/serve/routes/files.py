"""/v1/files: upload, list, fetch, delete."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.formparsers import MultiPartParser

from ladderlm.serve import files
from ladderlm.serve.server import Caller
from ladderlm.serve.wire.files import FileDeleted, FileList, FileObject, Purpose

router = APIRouter(prefix="/v1/files", tags=["files"])
LONGEST = 30 * 86400  # seconds that a file which expires may stay
Lasting = Annotated[int, Field(ge=3600, le=LONGEST)]
Absent = SkipJsonSchema[None]  # a form has no null
# Bytes of an upload that memory may hold, as many as of any other body. What is longer goes to the disk piece by piece,
# and each piece waits for a thread: behind many streams that takes long.
MultiPartParser.spool_max_size = 4 * 2**20


@router.post("")
def upload(
    who: Caller,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[Purpose, Form()],
    anchor: Annotated[Literal["created_at"] | Absent, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[Lasting | Absent, Form(alias="expires_after[seconds]")] = None,
) -> FileObject:
    """Keeps a file. When this answers it is on the disk."""
    return FileObject.of(files.put(file.file, file.filename or "", purpose, who.user, expires_in=seconds))


@router.get("")
def list_files(
    who: Caller,
    purpose: Annotated[str | None, Query(max_length=50)] = None,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """One's own files, the latest first."""
    found, more = files.listed(who, purpose=purpose, after=after, limit=limit, newest_first=order == "desc")
    data = [FileObject.of(file) for file in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last, has_more=more)


@router.get("/{id}")
def file(id: str, who: Caller) -> FileObject:
    """What is known of a file."""
    return FileObject.of(files.get(id, who))


@router.get("/{id}/content", response_class=FileResponse)
def content(id: str, who: Caller) -> FileResponse:
    """What a file holds, to be saved and not shown."""
    found = files.get(id, who)
    return FileResponse(found.path, media_type="application/octet-stream", filename=found.filename)


@router.delete("/{id}")
def delete(id: str, who: Caller) -> FileDeleted:
    """The file is gone; its content too, unless another file holds the same."""
    files.delete(id, who)
    return FileDeleted(id=id)
