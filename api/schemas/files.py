"""Files on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.tables import File


class FileObject(Listed):
    """An uploaded file."""

    id: str = Field(examples=["file-0197..."])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = Field("processed", description="Checked while uploading.")
    expires_at: int | None = None
    status_details: str | None = None


class FileDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def file_object(file: File) -> FileObject:
    """A row as the wire has it."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
    )
