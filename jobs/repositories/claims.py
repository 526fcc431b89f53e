"""Claims: how a worker comes to a job. Which one is next is decided by `queue.line`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.kinds import Kind
from jobs.repositories import attempts, events, projects, queue
from jobs.repositories.dialect import is_postgresql, lock_project
from jobs.repositories.transitions import move
from jobs.resources import Slot
from jobs.states import Actor, State
from jobs.tables import Job


@dataclass(frozen=True)
class Claim:
    """What a worker needs to know about the job it has claimed."""

    job_id: str
    project_id: str
    epoch: int
    recipe: dict[str, Any]
    model: str
    """Id of the base model."""
    training_file: str
    validation_file: str | None
    resume_checkpoint_id: str | None
    last_step: int
    total_steps: int
    attempts_left: int
    trained: bool
    """An earlier attempt has published the final checkpoint."""
    gpus: int = 1
    gpu_type: str | None = None
    runtime_left_s: float | None = None
    """Seconds until its deadline, 0 when that is over; None without one."""
    start_checkpoint_id: str | None = None
    """The checkpoint whose weights it starts from instead of the base model's."""
    oom_step: int | None = None
    """Step at which an earlier attempt ran out of memory and since which no checkpoint was made."""
    origin: dict[str, str] = field(default_factory=dict)
    """The request that made the job, see `jobs.origin`."""
    kind: Kind = Kind.TRAIN


def claim(session: Session, job_id: str, worker_id: str, lease_s: float, *, host: str | None = None) -> Claim | None:
    """Take this queued job, whatever the order; None when there is nothing to take. Workers use `claim_next`."""
    if is_postgresql(session):  # do not wait behind another claimer
        free = sa.select(Job.id).where(Job.id == job_id, *queue.ready())
        if session.scalar(free.with_for_update(skip_locked=True, key_share=True)) is None:
            return None
    return _take(session, job_id, worker_id, lease_s, host)


def claim_next(session: Session, slot: Slot, lease_s: float, *, max_running: int | None = None) -> Claim | None:
    """Take the queued job that is next for this worker, if there is one: a new epoch, a lease, an attempt.

    Args:
        max_running: jobs of one project that may run at once, unless its own limit is lower; None = any number.
    """
    full: list[str] = []
    while (found := queue.lock_next(session, slot, max_running=max_running, full=full)) is not None:
        job_id, project_id = found
        limits = [
            limit for limit in (max_running, projects.limits(session, project_id).running_jobs) if limit is not None
        ]
        if not limits or _may_start(session, project_id, min(limits)):
            return _take(session, job_id, slot.worker_id, lease_s, slot.host)
        full.append(project_id)
    return None


def _may_start(session: Session, project_id: str, max_running: int) -> bool:
    """Count again under a lock: another worker may have taken a job of the project since we looked."""
    lock_project(session, "running", project_id)
    return queue.running(session, project_id) < max_running


def _take(session: Session, job_id: str, worker_id: str, lease_s: float, host: str | None) -> Claim | None:
    lease = {"lease_owner": worker_id, "lease_until": now() + lease_s}
    started = {"started_at": sa.func.coalesce(Job.started_at, now()), "epoch": Job.epoch + 1, "phase": None}
    if not move(session, job_id, State.RUNNING, Actor.WORKER, *queue.ready(), **lease, **started):
        return None
    row = sa.select(Job, attempts.runtime_s(), events.origin()).where(Job.id == job_id)
    job, runtime_s, origin = session.execute(row.execution_options(populate_existing=True)).one()
    ooms = attempts.oom_steps(session, job_id) if job.epoch > 1 else []
    attempts.add(session, job_id, job.epoch, worker_id, host)
    message = "Fine-tuning job started" if job.epoch == 1 else f"Fine-tuning job continues, attempt {job.epoch}"
    events.append(session, job_id, None, "info", message)
    return Claim(
        job_id=job.id,
        project_id=job.project_id,
        epoch=job.epoch,
        recipe=job.recipe,
        model=job.base,
        training_file=job.training_file,
        validation_file=job.validation_file,
        resume_checkpoint_id=job.resume_checkpoint_id,
        last_step=job.last_step,
        total_steps=job.total_steps,
        attempts_left=job.attempts_left,
        trained=job.final_checkpoint_id is not None,
        gpus=job.gpus,
        gpu_type=job.gpu_type,
        runtime_left_s=None if job.max_runtime_s is None else max(job.max_runtime_s - runtime_s, 0.0),
        start_checkpoint_id=job.start_checkpoint_id,
        oom_step=ooms[0] if ooms else None,
        origin=origin or {},
        kind=Kind(job.kind),
    )
