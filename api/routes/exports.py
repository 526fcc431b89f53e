"""/v1/fine_tuning/exports, and exporting a checkpoint."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api import filters
from api.deps import After, Ctx, Limit, ReadsJobs, ReadsModels, WritesJobs
from api.download import member_response, tar_response
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.once import Once
from api.schemas.checkpoints import CheckpointFiles, checkpoint_files
from api.schemas.lists import ListOf, list_of
from api.schemas.tasks import ExportDeleted, ExportObject, export_object
from jobs.artifacts import Manifest
from jobs.context import Context
from jobs.errors import NotFound
from jobs.kinds import Kind
from jobs.services import changes, export, tasks
from jobs.services.once import Ticket
from jobs.tables import Checkpoint
from jobs.wire.tasks import ExportCheckpoint

_PATH = "/v1/fine_tuning/exports"
router = APIRouter(tags=["Exports"], responses=RESPONSES, route_class=JsonRoute)


@router.post("/v1/fine_tuning/checkpoints/{checkpoint_id}/export")
async def export_checkpoint(
    checkpoint_id: str, ctx: Ctx, project: WritesJobs, repeats: Once, body: ExportCheckpoint | None = None
) -> ExportObject:
    """Make the weights of a checkpoint ready for use elsewhere: whole, or the adapter alone, in a precision."""
    asked = body or ExportCheckpoint()

    def shown(task_id: str) -> ExportObject:
        return export_object(tasks.get(ctx, project, task_id, Kind.EXPORT))

    def make(ticket: Ticket | None) -> ExportObject:
        return shown(export.create(ctx, project, checkpoint_id, asked, repeats.key, ticket).id)

    return await repeats.once_in_row(ctx, project, "export", make=make, load=shown)


@router.get(_PATH)
def list_exports(
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    after: After = None,
    limit: Limit = 20,
    status: filters.Status = None,
) -> ListOf[ExportObject]:
    """List exports, newest first. `metadata[key]=value` filters; `metadata=null` finds those with none."""
    tags, untagged = filters.metadata(request)
    page = tasks.page(
        ctx,
        project,
        Kind.EXPORT,
        after=after,
        limit=limit,
        tags=tags,
        untagged=untagged,
        states=filters.states(status),
        model=None,
    )
    return list_of(page, export_object)


@router.get(_PATH + "/{export_id}")
def retrieve_export(export_id: str, ctx: Ctx, project: ReadsJobs) -> ExportObject:
    """Describe an export."""
    return export_object(tasks.get(ctx, project, export_id, Kind.EXPORT))


@router.delete(_PATH + "/{export_id}")
def delete_export(export_id: str, ctx: Ctx, project: WritesJobs) -> ExportDeleted:
    """Delete an export that is over, with its files; its usage still counts."""
    changes.delete(ctx, project, export_id, Kind.EXPORT)
    return ExportDeleted(id=export_id)


@router.post(_PATH + "/{export_id}/cancel")
def cancel_export(export_id: str, ctx: Ctx, project: WritesJobs) -> ExportObject:
    """Cancel an export. It is cancelled at once."""
    return export_object(tasks.cancel(ctx, project, export_id, Kind.EXPORT))


@router.post(_PATH + "/{export_id}/resume")
def resume_export(export_id: str, ctx: Ctx, project: WritesJobs) -> ExportObject:
    """Put an export that the service has paused back in the queue; it begins again."""
    return export_object(tasks.resume(ctx, project, export_id, Kind.EXPORT))


@router.get(_PATH + "/{export_id}/files")
def list_export_files(export_id: str, ctx: Ctx, project: ReadsModels) -> CheckpointFiles:
    """The manifest: path, size, sha256 and kind of every file."""
    return checkpoint_files(Manifest.from_json(_result(ctx, project, export_id).manifest))


@router.get(_PATH + "/{export_id}/files/{path:path}", response_class=Response)
def download_export_file(export_id: str, path: str, request: Request, ctx: Ctx, project: ReadsModels) -> Response:
    """One file. Supports Range and If-None-Match; the header `x-checksum-sha256` has the hash of the whole file."""
    return member_response(request, ctx.store, _result(ctx, project, export_id), path, f"Export {export_id}")


@router.get(_PATH + "/{export_id}/content", response_class=Response)
def download_export(export_id: str, request: Request, ctx: Ctx, project: ReadsModels) -> Response:
    """All files as one tar, streamed."""
    result = _result(ctx, project, export_id)
    manifest = Manifest.from_json(result.manifest)
    return tar_response(request, ctx.store, result.key, manifest, folder=export_id, time=int(result.created_at))


def _result(ctx: Context, project: str, export_id: str) -> Checkpoint:
    """Where its files are. Raises NotFound, also while there are none."""
    result = tasks.get(ctx, project, export_id, Kind.EXPORT).result
    if result is None:
        raise NotFound(f"Export {export_id} has no files: its status is not succeeded.", "id")
    return result
