"""/v1/fine_tuning/checkpoints: describing, keeping and downloading them.

Paths of files are matched to the manifest, never to a disk.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import Ctx, ReadsModels, WritesModels
from api.download import member_response, tar_response
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.checkpoints import (
    CheckpointDeleted,
    CheckpointFiles,
    CheckpointObject,
    checkpoint_files,
    checkpoint_object,
)
from jobs.artifacts import Manifest
from jobs.services import jobs, retention
from jobs.wire.request import UpdateCheckpoint

router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{checkpoint_id}",
    tags=["Checkpoints"],
    responses=RESPONSES,
    route_class=JsonRoute,
)


@router.get("")
def retrieve_checkpoint(checkpoint_id: str, ctx: Ctx, project: ReadsModels) -> CheckpointObject:
    """Describe a checkpoint."""
    return checkpoint_object(jobs.checkpoint(ctx, project, checkpoint_id))


@router.patch("")
def update_checkpoint(checkpoint_id: str, body: UpdateCheckpoint, ctx: Ctx, project: WritesModels) -> CheckpointObject:
    """Pin a checkpoint, so that it is kept whatever else is, or unpin it."""
    return checkpoint_object(jobs.pin_checkpoint(ctx, project, checkpoint_id, body.pinned))


@router.delete("")
def delete_checkpoint(checkpoint_id: str, ctx: Ctx, project: WritesModels) -> CheckpointDeleted:
    """Delete a checkpoint and its files. Refused when it is pinned, a job's result, or where a job would go on."""
    retention.delete_checkpoint(ctx, project, checkpoint_id)
    return CheckpointDeleted(id=checkpoint_id)


@router.get("/files")
def list_checkpoint_files(checkpoint_id: str, ctx: Ctx, project: ReadsModels) -> CheckpointFiles:
    """The manifest: path, size, sha256 and kind of every file."""
    return checkpoint_files(Manifest.from_json(jobs.checkpoint(ctx, project, checkpoint_id).manifest))


@router.get("/files/{path:path}", response_class=Response)
def download_checkpoint_file(
    checkpoint_id: str, path: str, request: Request, ctx: Ctx, project: ReadsModels
) -> Response:
    """One file. Supports Range and If-None-Match; the header `x-checksum-sha256` has the hash of the whole file."""
    checkpoint = jobs.checkpoint(ctx, project, checkpoint_id)
    return member_response(request, ctx.store, checkpoint, path, f"Checkpoint {checkpoint_id}")


@router.get("/content", response_class=Response)
def download_checkpoint(checkpoint_id: str, request: Request, ctx: Ctx, project: ReadsModels) -> Response:
    """All files as one tar, streamed."""
    checkpoint = jobs.checkpoint(ctx, project, checkpoint_id)
    manifest = Manifest.from_json(checkpoint.manifest)
    folder = f"{checkpoint.id}-step-{checkpoint.step}"
    time = int(checkpoint.created_at)
    return tar_response(request, ctx.store, checkpoint.key, manifest, folder=folder, time=time)
