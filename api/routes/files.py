"""/v1/files"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.deps import After, Ctx, ReadsFiles, WritesFiles
from api.download import base64_response, object_response
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.once import Once
from api.schemas.files import FileDeleted, FileObject, FileValidation, file_object, file_validation
from api.schemas.lists import ListOf, list_of
from api.upload import ANCHOR, SECONDS, receive_file
from jobs.services import files
from jobs.services.once import digest_of

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
                        ANCHOR: {"type": "string", "enum": ["created_at"]},
                        SECONDS: {
                            "type": "integer",
                            "minimum": files.MIN_EXPIRES_S,
                            "maximum": files.MAX_EXPIRES_S,
                            "description": "The file vanishes so many seconds after its creation.",
                        },
                        "file": {"type": "string", "format": "binary", "description": "JSONL when for fine-tuning."},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def create_file(request: Request, ctx: Ctx, project: WritesFiles, repeats: Once) -> FileObject:
    """Upload a file of at most 512 MB; bigger ones go through /v1/uploads.

    A file with purpose `fine-tune` is checked at once: JSONL, each row `{"messages": [...], ...}`; the error names the
    first line that cannot be used.
    """
    async with receive_file(request, ctx.settings) as received:
        file = await repeats.once(
            ctx,
            project,
            "file",
            digest_of(received.as_request()),
            make=lambda ticket: files.create(ctx, project, received, ticket),
            load=lambda file_id: files.get(ctx, project, file_id),
        )
    return file_object(file)


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


@router.post("/{file_id}/validate")
def validate_file(file_id: str, ctx: Ctx, project: WritesFiles) -> FileValidation:
    """Check a file of any purpose as a dataset, and report on every line that cannot be used."""
    return file_validation(file_id, files.validate(ctx, project, file_id))


@router.get("/{file_id}/content", response_class=Response)
def download_file(
    file_id: str,
    request: Request,
    ctx: Ctx,
    project: ReadsFiles,
    encoding: Annotated[
        Literal["base64"] | None, Query(description="base64: as text, as OpenAI once gave result files.")
    ] = None,
) -> Response:
    """The bytes of a file. Supports Range, If-Range and If-None-Match, but not of base64."""
    file = files.get(ctx, project, file_id)
    if encoding is not None:
        return base64_response(ctx.store, file.key, name=file.filename, size=file.bytes)
    return object_response(request, ctx.store, file.key, name=file.filename, size=file.bytes, sha256=file.sha256)
