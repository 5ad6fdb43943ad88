"""Files."""

from __future__ import annotations

from typing import Literal

from ladderlm.serve.files import File
from ladderlm.serve.wire.base import Wire

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileObject(Wire):
    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None

    @classmethod
    def of(cls, file: File) -> FileObject:
        expires = None if file.expires is None else int(file.expires)
        return cls(id=file.id, bytes=file.bytes, created_at=int(file.created), expires_at=expires,
                   filename=file.filename, purpose=file.purpose)  # fmt: skip


class FileList(Wire):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Wire):
    object: Literal["file"] = "file"
    id: str
    deleted: bool = True
