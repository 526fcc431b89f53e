"""/v1/fine_tuning/graders, and OpenAI's /v1/fine_tuning/alpha/graders"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import After, Ctx, Limit, ReadsGraders, RunsGraders, WritesGraders
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.graders import (
    GraderBatchRun,
    GraderDeleted,
    GraderObject,
    GraderRun,
    GraderVersions,
    ValidatedGrader,
    batch_run,
    grader_object,
    grader_run,
)
from api.schemas.lists import ListOf, list_of
from jobs.services import grader_runs, stored_graders
from jobs.wire.graders import RunGrader, RunGraderBatch, StoreGrader, StoreGraderVersion, ValidateGrader

router = APIRouter(prefix="/v1/fine_tuning", tags=["Graders"], responses=RESPONSES, route_class=JsonRoute)

Version = Annotated[int | None, Query(ge=1, description="Default: the newest.")]


@router.post("/alpha/graders/run")
@router.post("/graders/run")
def run_grader(body: RunGrader, ctx: Ctx, project: RunsGraders) -> GraderRun:
    """Grade one sample. A grader that fails answers with status 200 as well: its error flags are set, its reward is 0.

    The service runs so many graders at a time and answers 503 with Retry-After beyond.
    """
    return grader_run(grader_runs.run(ctx, project, body))


@router.post("/alpha/graders/validate")
@router.post("/graders/validate")
def validate_grader(body: ValidateGrader, ctx: Ctx, project: RunsGraders) -> ValidatedGrader:
    """Check a grader: fields, templates, formula, source, secrets, and that it can run here.

    `param` of the error says what is wrong.
    """
    return ValidatedGrader(grader=grader_runs.validate(ctx, project, body.grader).shown)


@router.post("/graders/run_batch")
def run_grader_batch(body: RunGraderBatch, ctx: Ctx, project: RunsGraders) -> GraderBatchRun:
    """Grade up to 256 samples, or rows of a file that hold an answer each, with statistics."""
    return batch_run(grader_runs.run_batch(ctx, project, body))


@router.post("/graders")
def create_grader(body: StoreGrader, ctx: Ctx, project: WritesGraders) -> GraderObject:
    """Store a grader as version 1. Jobs refer to it as `{"type": "grader_ref", "id": ..., "version": ...}`."""
    return grader_object(stored_graders.create(ctx, project, body))


@router.get("/graders")
def list_graders(ctx: Ctx, project: ReadsGraders, after: After = None, limit: Limit = 20) -> ListOf[GraderObject]:
    """List stored graders, newest first, each in its newest version."""
    return list_of(stored_graders.page(ctx, project, after=after, limit=limit), grader_object)


@router.get("/graders/{grader_id}")
def retrieve_grader(grader_id: str, ctx: Ctx, project: ReadsGraders, version: Version = None) -> GraderObject:
    """A stored grader in one version."""
    return grader_object(stored_graders.get(ctx, project, grader_id, version))


@router.delete("/graders/{grader_id}")
def delete_grader(grader_id: str, ctx: Ctx, project: WritesGraders) -> GraderDeleted:
    """Delete a stored grader with all versions. Jobs that refer to it have its definition and go on."""
    stored_graders.delete(ctx, project, grader_id)
    return GraderDeleted(id=grader_id)


@router.post("/graders/{grader_id}/versions")
def create_grader_version(grader_id: str, body: StoreGraderVersion, ctx: Ctx, project: WritesGraders) -> GraderObject:
    """Store the next version. Earlier ones stay as they are."""
    return grader_object(stored_graders.add_version(ctx, project, grader_id, body))


@router.get("/graders/{grader_id}/versions")
def list_grader_versions(
    grader_id: str,
    ctx: Ctx,
    project: ReadsGraders,
    after: Annotated[int | None, Query(ge=1, description="Number of the last version of the page before.")] = None,
    limit: Limit = 20,
) -> GraderVersions:
    """List versions of a stored grader, newest first."""
    page = stored_graders.versions(ctx, project, grader_id, after=after, limit=limit)
    return GraderVersions(data=[grader_object(stored) for stored in page.rows], has_more=page.has_more)
