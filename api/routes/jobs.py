"""/v1/fine_tuning/jobs"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request

from api.deps import After, Ctx, Limit, ReadsJobs, WritesJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.jobs import JobObject, job_object
from api.schemas.lists import ListOf, list_of
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.services import clone, create, jobs, queue, retry
from jobs.tables import Job
from jobs.wire.request import CreateJob, RetryJob

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning jobs"], responses=RESPONSES, route_class=JsonRoute)
_METADATA = re.compile(r"metadata\[(.+)\]")

IdempotencyKey = Annotated[
    str | None, Header(description="Repeating a request with the same key gives the job the first one made.")
]


@router.post("")
def create_job(body: CreateJob, ctx: Ctx, project: WritesJobs, idempotency_key: IdempotencyKey = None) -> JobObject:
    """Create a job. All that can be wrong with it is said now; the answer shows what every `auto` became."""
    return _shown(ctx, create.create(ctx, project, body, idempotency_key))


@router.get("")
def list_jobs(
    request: Request, ctx: Ctx, project: ReadsJobs, after: After = None, limit: Limit = 20
) -> ListOf[JobObject]:
    """List jobs, newest first. `metadata[key]=value` filters; `metadata=null` finds those with none."""
    tags, untagged = _metadata(request)
    page = jobs.page(ctx, project, after=after, limit=limit, tags=tags, untagged=untagged)
    return list_of(page, job_object)


@router.get("/{job_id}")
def retrieve_job(job_id: str, ctx: Ctx, project: ReadsJobs) -> JobObject:
    """Describe a job."""
    return _shown(ctx, jobs.get(ctx, project, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, ctx: Ctx, project: WritesJobs) -> JobObject:
    """Cancel a job. It is cancelled at once; its worker stops in the background and writes nothing more."""
    return _shown(ctx, jobs.cancel(ctx, project, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, ctx: Ctx, project: WritesJobs) -> JobObject:
    """Pause a job. A running one shows `rl.phase` pausing until its checkpoint is stored, then is paused."""
    return _shown(ctx, jobs.pause(ctx, project, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, ctx: Ctx, project: WritesJobs) -> JobObject:
    """Put a paused job back in the queue; it continues from its last checkpoint."""
    return _shown(ctx, jobs.resume(ctx, project, job_id))


@router.post("/{job_id}/retry")
def retry_job(
    job_id: str, ctx: Ctx, project: WritesJobs, body: RetryJob | None = None, idempotency_key: IdempotencyKey = None
) -> JobObject:
    """Do again what a failed or cancelled job was to do: a new job that goes on from its last good checkpoint.

    Recipe, seed and files are the same; the body may change when and where it runs.
    """
    return _shown(ctx, retry.retry(ctx, project, job_id, body or RetryJob(), idempotency_key))


@router.post("/{job_id}/clone")
def clone_job(
    job_id: str,
    ctx: Ctx,
    project: WritesJobs,
    changes: Annotated[dict[str, Any] | None, Body(description="A part of the create body.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> JobObject:
    """Create a job from the request of another one, whatever its status, with changes.

    The body is merged into that request (RFC 7396): objects merge, null removes a key, everything else replaces. The
    seed is the other job's resolved one unless the body has another; null draws a new one.
    """
    return _shown(ctx, clone.clone(ctx, project, job_id, changes or {}, idempotency_key))


def _shown(ctx: Context, job: Job) -> JobObject:
    return job_object(job, queue.waiting(ctx, job))


def _metadata(request: Request) -> tuple[dict[str, str], bool]:
    tags: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        found = _METADATA.fullmatch(name)
        if found is None:
            continue
        if "\x00" in name + value:
            raise InvalidRequest("metadata must not contain NUL.", "metadata")
        tags[found[1]] = value
    literal = request.query_params.get("metadata")
    if literal not in (None, "null"):
        raise InvalidRequest("metadata takes metadata[key]=value, or null.", "metadata")
    return tags, literal == "null"
