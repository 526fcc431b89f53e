"""/v1/fine_tuning/jobs"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from starlette.concurrency import run_in_threadpool

from api import filters
from api.deps import After, Ctx, Limit, ReadsJobs, WritesJobs
from api.errors import RESPONSES
from api.follow import MAX_WAIT_S, until_over
from api.json_body import JsonRoute
from api.once import Once, Repeats
from api.schemas.dry_runs import EstimateObject, ValidationObject, estimate_object, validation_object
from api.schemas.jobs import JobDeleted, JobObject, job_object
from api.schemas.lists import ListOf, list_of
from api.schemas.specification import SpecificationObject, specification_object
from jobs.context import Context
from jobs.services import changes, clone, create, dry_run, estimate, jobs, queue, retry, specification
from jobs.services.once import Ticket
from jobs.tables import Job
from jobs.wire.request import CreateJob, RetryJob, UpdateJob

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning jobs"], responses=RESPONSES, route_class=JsonRoute)


@router.post("")
async def create_job(body: CreateJob, ctx: Ctx, project: WritesJobs, repeats: Once) -> JobObject:
    """Create a job. All that can be wrong with it is said now; the answer shows what every `auto` became."""
    return await _once(repeats, ctx, project, lambda ticket: create.create(ctx, project, body, repeats.key, ticket))


@router.post("/validate")
def validate_job(
    ctx: Ctx, project: WritesJobs, body: Annotated[dict[str, Any], Body(description="A create body, right or wrong.")]
) -> ValidationObject:
    """Say all that a create would refuse, and what its grader makes of the first rows. Creates nothing.

    The status is 200 also when there are problems.
    """
    return validation_object(dry_run.check(ctx, project, body))


@router.post("/estimate")
def estimate_job(body: CreateJob, ctx: Ctx, project: WritesJobs) -> EstimateObject:
    """Say what a job would take: steps, tokens, time, room, judges, and its place in the queue. Creates nothing."""
    return estimate_object(estimate.estimate(ctx, project, body))


@router.get("")
def list_jobs(
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    after: After = None,
    limit: Limit = 20,
    status: filters.Status = None,
    model: Annotated[str | None, Query(max_length=256, description="Only jobs of this base model.")] = None,
) -> ListOf[JobObject]:
    """List jobs, newest first. `metadata[key]=value` filters; `metadata=null` finds those with none."""
    tags, untagged = filters.metadata(request)
    page = jobs.page(
        ctx, project, after=after, limit=limit, tags=tags, untagged=untagged, states=filters.states(status), model=model
    )
    return list_of(page, job_object)


@router.get("/{job_id}")
def retrieve_job(job_id: str, ctx: Ctx, project: ReadsJobs) -> JobObject:
    """Describe a job."""
    return _shown(ctx, jobs.get(ctx, project, job_id))


@router.patch("/{job_id}")
def update_job(job_id: str, body: UpdateJob, ctx: Ctx, project: WritesJobs) -> JobObject:
    """Change a job's metadata, and until it is over its priority and which checkpoints it keeps."""
    return _shown(ctx, changes.update(ctx, project, job_id, body))


@router.delete("/{job_id}")
def delete_job(job_id: str, ctx: Ctx, project: WritesJobs) -> JobDeleted:
    """Delete a job that is over, with its checkpoints and all it has told; its usage still counts.

    Refused while a checkpoint of it is pinned, or another job goes on from one. Its files stay.
    """
    changes.delete(ctx, project, job_id)
    return JobDeleted(id=job_id)


@router.get("/{job_id}/wait")
async def wait_for_job(
    job_id: str,
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False, description="Seconds.")] = 60,
) -> JobObject:
    """The job once it is over, or as it is after the timeout or when the server stops: always with status 200."""
    state = request.app.state
    await run_in_threadpool(jobs.get, ctx, project, job_id)
    await until_over(state.polls, job_id, timeout, state.stopping, request.is_disconnected)
    return await run_in_threadpool(lambda: _shown(ctx, jobs.get(ctx, project, job_id)))


@router.get("/{job_id}/spec")
def show_specification(job_id: str, ctx: Ctx, project: ReadsJobs) -> SpecificationObject:
    """What the job stood on, to run it again: recipe, seed, hashes of its files, base model, versions."""
    return specification_object(specification.of_job(ctx, project, job_id))


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
async def retry_job(
    job_id: str, ctx: Ctx, project: WritesJobs, repeats: Once, body: RetryJob | None = None
) -> JobObject:
    """Do again what a failed or cancelled job was to do: a new job that goes on from its last good checkpoint.

    Recipe, seed and files are the same; the body may change when and where it runs.
    """
    changes = body or RetryJob()
    return await _once(
        repeats, ctx, project, lambda ticket: retry.retry(ctx, project, job_id, changes, repeats.key, ticket)
    )


@router.post("/{job_id}/clone")
async def clone_job(
    job_id: str,
    ctx: Ctx,
    project: WritesJobs,
    repeats: Once,
    changes: Annotated[dict[str, Any] | None, Body(description="A part of the create body.")] = None,
) -> JobObject:
    """Create a job from the request of another one, whatever its status, with changes.

    The body is merged into that request (RFC 7396): objects merge, null removes a key, everything else replaces. The
    seed is the other job's resolved one unless the body has another; null draws a new one.
    """
    return await _once(
        repeats, ctx, project, lambda ticket: clone.clone(ctx, project, job_id, changes or {}, repeats.key, ticket)
    )


async def _once(repeats: Repeats, ctx: Context, project: str, make: Callable[[Ticket | None], Job]) -> JobObject:
    return await repeats.once_in_row(
        ctx,
        project,
        "job",
        make=lambda ticket: _shown(ctx, make(ticket)),
        load=lambda job_id: _shown(ctx, jobs.get(ctx, project, job_id)),
    )


def _shown(ctx: Context, job: Job) -> JobObject:
    return job_object(job, queue.waiting(ctx, job))
