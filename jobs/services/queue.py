"""The queue for those who wait in it: a job's place and reason, a project's whole view, the registry of workers."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.context import Context
from jobs.limits import ProjectLimits
from jobs.repositories import queue, workers
from jobs.repositories.queue import Snapshot, Waiting
from jobs.services.quotas import limits_of
from jobs.states import State
from jobs.tables import Job, Worker


def waiting(ctx: Context, job: Job) -> Waiting | None:
    """Position of a queued job and what it waits for; None of any other."""
    if job.state != State.QUEUED:
        return None
    with ctx.db.read() as session:
        own = limits_of(ctx, session, job.project_id).running_jobs
        return queue.waiting(session, job, max_running=ctx.settings.max_running_jobs, own_limit=own)


def snapshot(ctx: Context, project_id: str) -> tuple[Snapshot, ProjectLimits]:
    """What a project has waiting and running, the workers there are, and how much it may have."""
    with ctx.db.read() as session:
        limits = limits_of(ctx, session, project_id)
        most = ctx.settings.max_running_jobs
        return queue.snapshot(session, project_id, max_running=most, own_limit=limits.running_jobs), limits


def registry(ctx: Context) -> Sequence[Worker]:
    """All workers that are remembered, those no longer seen included."""
    with ctx.db.read() as session:
        return workers.list(session)
