"""/v1/uploads: big files in parts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from api.deps import Ctx, WritesFiles
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.multipart import drain_refused
from api.once import Once
from api.schemas.files import PartObject, UploadObject, part_object, upload_object
from api.upload import receive_part
from jobs.errors import ServiceError
from jobs.services import uploads
from jobs.services.once import digest_of
from jobs.wire.uploads import CompleteUpload, CreateUpload

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"], responses=RESPONSES, route_class=JsonRoute)

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary", "description": "At most 64 MiB."}},
                }
            }
        },
    }
}


@router.post("")
async def create_upload(body: CreateUpload, ctx: Ctx, project: WritesFiles, repeats: Once) -> UploadObject:
    """Begin a file of at most 8 GiB that comes in parts. It takes parts for an hour."""
    shown = await repeats.once(
        ctx,
        project,
        "upload",
        digest_of(body.model_dump(mode="json")),
        make=lambda ticket: uploads.create(ctx, project, body, ticket),
        load=lambda upload_id: uploads.get(ctx, project, upload_id),
    )
    return upload_object(shown)


@router.post("/{upload_id}/parts", openapi_extra=_FORM)
async def create_part(upload_id: str, request: Request, ctx: Ctx, project: WritesFiles, repeats: Once) -> PartObject:
    """Add a part of at most 64 MiB. Parts may come in any order and at the same time."""
    try:
        await run_in_threadpool(uploads.require_pending, ctx, project, upload_id)
    except ServiceError:
        await drain_refused(request, ctx.settings.max_part_bytes)
        raise
    async with receive_part(request, ctx.settings) as piece:
        part = await repeats.once(
            ctx,
            project,
            "part",
            digest_of({"upload": upload_id, "sha256": piece.sha256, "bytes": piece.bytes}),
            make=lambda ticket: uploads.add_part(ctx, project, upload_id, piece, ticket),
            load=lambda part_id: uploads.part(ctx, part_id),
        )
    return part_object(part)


@router.post("/{upload_id}/complete")
def complete_upload(upload_id: str, body: CompleteUpload, ctx: Ctx, project: WritesFiles) -> UploadObject:
    """Make the file of the parts named, in their order.

    Their bytes must come to what was announced, and to `md5` if given. A fine-tune file is checked as any other; one
    that is no dataset has status `error`, and `POST /v1/files/{file_id}/validate` says why.
    """
    return upload_object(uploads.complete(ctx, project, upload_id, body))


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, ctx: Ctx, project: WritesFiles) -> UploadObject:
    """Give an upload up; its parts are deleted."""
    return upload_object(uploads.cancel(ctx, project, upload_id))
