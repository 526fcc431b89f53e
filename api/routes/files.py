"""/v1/files"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.deps import After, Ctx, ReadsFiles, WritesFiles
from api.download import object_response
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.files import FileDeleted, FileObject, file_object
from api.schemas.lists import ListOf, list_of
from api.upload import receive_upload
from jobs.services import files

router = APIRouter(prefix="/v1/files", tags=["Files"], responses=RESPONSES, route_class=JsonRoute)

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": list(files.PURPOSES)},
                        "file": {"type": "string", "format": "binary", "description": "JSONL when for fine-tuning."},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def create_file(request: Request, ctx: Ctx, project: WritesFiles) -> FileObject:
    """Upload a file of at most 512 MB.

    A file with purpose `fine-tune` is checked at once: JSONL, each row `{"messages": [...], ...}`; the error names the
    first line that cannot be used.
    """
    limit, folder = ctx.settings.max_file_bytes, ctx.settings.scratch
    async with receive_upload(request, max_bytes=limit, folder=folder) as upload:
        return file_object(await run_in_threadpool(files.create, ctx, project, upload))


@router.get("")
def list_files(
    ctx: Ctx,
    project: ReadsFiles,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> ListOf[FileObject]:
    """List files by creation time."""
    page = files.page(ctx, project, after=after, limit=limit, order=order, purpose=purpose)
    return list_of(page, file_object)


@router.get("/{file_id}")
def retrieve_file(file_id: str, ctx: Ctx, project: ReadsFiles) -> FileObject:
    """Describe a file."""
    return file_object(files.get(ctx, project, file_id))


@router.delete("/{file_id}")
def delete_file(file_id: str, ctx: Ctx, project: WritesFiles) -> FileDeleted:
    """Delete a file that no unfinished job uses."""
    files.delete(ctx, project, file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=Response)
def download_file(file_id: str, request: Request, ctx: Ctx, project: ReadsFiles) -> Response:
    """The bytes of a file. Supports Range and If-None-Match."""
    file = files.get(ctx, project, file_id)
    return object_response(request, ctx.store, file.key, name=file.filename, size=file.bytes, sha256=file.sha256)
