"""The queue for those who wait in it: a job's place and reason, a project's whole view, the registry of workers."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.context import Context
from jobs.repositories import queue, workers
from jobs.repositories.queue import Snapshot, Waiting
from jobs.states import State
from jobs.tables import Job, Worker


def waiting(ctx: Context, job: Job) -> Waiting | None:
    """Position of a queued job and what it waits for; None of any other."""
    if job.state != State.QUEUED:
        return None
    with ctx.db.read() as session:
        return queue.waiting(session, job, max_running=ctx.settings.max_running_jobs)


def snapshot(ctx: Context, project_id: str) -> Snapshot:
    """What a project has waiting and running, and the workers there are."""
    with ctx.db.read() as session:
        return queue.snapshot(session, project_id, max_running=ctx.settings.max_running_jobs)


def registry(ctx: Context) -> Sequence[Worker]:
    """All workers that are remembered, those no longer seen included."""
    with ctx.db.read() as session:
        return workers.list(session)
