"""/v1/fine_tuning/queue, and /v1/organization/workers for administrators."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import Admin
from api.deps import Ctx, ReadsJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.queue import QueueObject, WorkerList, queue_object, worker_object
from jobs.services import queue

router = APIRouter(prefix="/v1", tags=["Queue"], responses=RESPONSES, route_class=JsonRoute)


@router.get("/fine_tuning/queue")
def show_queue(ctx: Ctx, project: ReadsJobs) -> QueueObject:
    """The caller's waiting jobs with position and reason, its running ones, and the workers by class."""
    found, limits = queue.snapshot(ctx, project)
    queued = ctx.settings.max_queued_jobs if limits.queued_jobs is None else limits.queued_jobs
    return queue_object(found, max_queued_jobs=queued, max_running_jobs=limits.running_jobs)


@router.get("/organization/workers")
def list_workers(ctx: Ctx, _: Admin) -> WorkerList:
    """All workers with what they do, those that are no longer seen included. Needs the administrator's key."""
    return WorkerList(data=[worker_object(row) for row in queue.registry(ctx)])
