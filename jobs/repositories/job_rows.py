"""Jobs as users see them: insert, read, list, and the wishes cancel, pause and resume. Always within a project."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.errors import InvalidState
from jobs.ids import is_id
from jobs.kinds import NAMES, PREFIXES, Kind
from jobs.repositories import events
from jobs.repositories.dialect import has_pair, lock_project
from jobs.repositories.transitions import move
from jobs.states import TERMINAL, Actor, State
from jobs.tables import Checkpoint, Job


def insert(session: Session, job: Job) -> Job:
    """Add a job; the database sets its creation time. Raises IntegrityError when its idempotency key is taken."""
    job.created_at = job.queued_at = session.scalars(sa.select(now())).one()
    session.add(job)
    session.flush()
    return job


def count_queued(session: Session, project_id: str) -> int:
    """Jobs of a project that wait for a worker, counted under a lock of the project.

    The lock lasts until the end of the transaction, so that a limit checked against the count still holds when a job
    is inserted in the same transaction.
    """
    lock_project(session, "queued", project_id)
    where = (Job.project_id == project_id, Job.state.in_([State.VALIDATING, State.QUEUED]))
    return session.scalars(sa.select(sa.func.count()).select_from(Job).where(*where)).one()


_ASKED = (
    "project_id", "model", "base_model", "start_checkpoint_id", "lineage",
    "training_file", "validation_file", "suffix", "tags", "seed", "method", "recipe",
    "total_steps", "request", "webhook_url", "priority", "gpus", "gpu_type", "max_runtime_s", "budget",
    "request_hash",
)  # fmt: skip


def again(source: Job, *, id: str, tuned_model: str, max_attempts: int, resume: Checkpoint | None) -> Job:
    """A job that is asked the same as `source`, seed included, and begins at `resume`; not inserted yet."""
    asked = {name: getattr(source, name) for name in _ASKED}
    return Job(
        **asked,
        id=id,
        tuned_model=tuned_model,
        source_job_id=source.id,
        state=State.VALIDATING,
        desired="run",
        attempts_left=max_attempts,
        max_attempts=max_attempts,
        resume_checkpoint_id=None if resume is None else resume.id,
        last_step=0 if resume is None else resume.step,
    )


def resume_point(session: Session, job: Job) -> Checkpoint | None:
    """Where a job that does the same can go on from; locked until the end of the transaction. None = base model.

    That is the last good checkpoint, or the one the job began at itself. A final one is none: nothing comes after it.
    """
    good = sa.select(Checkpoint).where(~Checkpoint.damaged, ~Checkpoint.final).with_for_update(read=True)
    own = session.scalar(good.where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc()).limit(1))
    if own is not None or job.resume_checkpoint_id is None:
        return own
    return session.scalar(good.where(Checkpoint.id == job.resume_checkpoint_id))


def get(session: Session, project_id: str, job_id: str, kind: Kind = Kind.TRAIN) -> Job | None:
    """One job by id."""
    if not is_id(PREFIXES[kind], job_id):
        return None
    statement = sa.select(Job).where(Job.id == job_id, Job.project_id == project_id, Job.deleted_at.is_(None))
    return session.scalar(statement.execution_options(populate_existing=True))


def by_idempotency_key(session: Session, project_id: str, key: str) -> Job | None:
    """The job a request with this key made."""
    return session.scalar(sa.select(Job).where(Job.project_id == project_id, Job.idempotency_key == key))


def page(
    session: Session,
    project_id: str,
    *,
    after: Job | None,
    limit: int,
    tags: Mapping[str, str] | None = None,
    untagged: bool = False,
    states: Collection[State] | None = None,
    model: str | None = None,
    kind: Kind = Kind.TRAIN,
) -> list[Job]:
    """Up to `limit` jobs, newest first; only those with all of `tags`, or with none at all.

    Args:
        states: only jobs in one of them.
        model: only jobs of this base model.
    """
    order = (Job.created_at.desc(), Job.id.desc())
    statement = sa.select(Job).where(Job.project_id == project_id, Job.kind == kind, Job.deleted_at.is_(None))
    statement = statement.order_by(*order).limit(limit)
    if states is not None:
        statement = statement.where(Job.state.in_(states))
    if model is not None:
        statement = statement.where(Job.model == model)
    if after is not None:
        here = sa.tuple_(Job.created_at, Job.id)
        statement = statement.where(here < sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id))
    for key, value in (tags or {}).items():
        statement = statement.where(has_pair(session, Job.tags, key, value))
    if untagged:
        statement = statement.where(Job.tags.is_(None))
    return list(session.scalars(statement))


def succeeded(session: Session, project_id: str) -> list[Job]:
    """All jobs that made a model, which is not deleted, nor the job, oldest first."""
    where = (
        Job.project_id == project_id,
        Job.kind == Kind.TRAIN,
        Job.state == State.SUCCEEDED,
        Job.tuned_model_deleted_at.is_(None),
        Job.deleted_at.is_(None),
    )
    return list(session.scalars(sa.select(Job).where(*where).order_by(Job.created_at, Job.id)))


def by_tuned_model(session: Session, project_id: str, name: str) -> Job | None:
    """The succeeded job that made this model."""
    where = (Job.project_id == project_id, Job.state == State.SUCCEEDED, Job.tuned_model == name)
    present = (Job.kind == Kind.TRAIN, Job.tuned_model_deleted_at.is_(None), Job.deleted_at.is_(None))
    return session.scalar(sa.select(Job).where(*where, *present))


def delete_tuned_model(session: Session, job_id: str) -> None:
    """Its name is no model any more; the job stays."""
    statement = sa.update(Job).where(Job.id == job_id).values(tuned_model_deleted_at=now())
    session.execute(statement.execution_options(synchronize_session=False))


def queue(session: Session, job_id: str) -> None:
    """Validation is over: let workers have it."""
    move(session, job_id, State.QUEUED, Actor.API)


def cancel(session: Session, project_id: str, job_id: str, kind: Kind = Kind.TRAIN) -> Job | None:
    """Wish it cancelled: at once when no worker has it, else the worker is told. None when there is no such job."""
    job = lock(session, project_id, job_id, kind)
    if job is None or job.state in (State.CANCELLING, State.CANCELLED):
        return job
    _refuse_terminal(job, "cancelled")
    busy = job.state in (State.RUNNING, State.PAUSING)
    target = State.CANCELLING if busy else State.CANCELLED
    move(session, job_id, target, Actor.API, desired="cancel", finished_at=now())
    events.append(session, job_id, None, "info", "Fine-tuning job cancelled")
    return get(session, project_id, job_id, kind)


def pause(session: Session, project_id: str, job_id: str) -> Job | None:
    """Wish it paused: at once when no worker has it, else after a checkpoint."""
    job = lock(session, project_id, job_id)
    if job is None or job.state in (State.PAUSING, State.PAUSED):
        return job
    _refuse_terminal(job, "paused")
    if job.state not in (State.QUEUED, State.RUNNING):
        raise InvalidState(f"Job {job_id} is {job.state} and cannot be paused.")
    target = State.PAUSING if job.state == State.RUNNING else State.PAUSED
    move(session, job_id, target, Actor.API, desired="pause")
    message = "Pausing after the next checkpoint" if target == State.PAUSING else "Fine-tuning job paused"
    events.append(session, job_id, None, "info", message)
    return get(session, project_id, job_id)


def resume(session: Session, project_id: str, job_id: str, kind: Kind = Kind.TRAIN) -> Job | None:
    """Queue a paused job again."""
    job = lock(session, project_id, job_id, kind)
    if job is None or job.state in (State.VALIDATING, State.QUEUED, State.RUNNING):
        return job
    _refuse_terminal(job, "resumed")
    if job.state != State.PAUSED:
        raise InvalidState(f"{_named(job)} is {job.state}; it can be resumed once it is paused.")
    fresh = {"not_before": 0.0, "rung_at": None, "queued_at": now(), "pause_code": None, "pause_message": None}
    move(session, job_id, State.QUEUED, Actor.API, desired="run", **fresh)
    events.append(session, job_id, None, "info", "Fine-tuning job resumed")
    return get(session, project_id, job_id, kind)


def exports_of(session: Session, project_id: str, job_id: str) -> list[Job]:
    """The exports of a job's checkpoints, locked until the end of the transaction."""
    where = (Job.source_job_id == job_id, Job.kind == Kind.EXPORT, Job.project_id == project_id)
    statement = sa.select(Job).where(*where, Job.deleted_at.is_(None)).order_by(Job.id)
    return list(session.scalars(statement.with_for_update(key_share=True)))


def lock(session: Session, project_id: str, job_id: str, kind: Kind = Kind.TRAIN) -> Job | None:
    """One job by id, locked until the end of the transaction."""
    if not is_id(PREFIXES[kind], job_id):
        return None
    statement = sa.select(Job).where(Job.id == job_id, Job.project_id == project_id, Job.deleted_at.is_(None))
    return session.scalar(statement.with_for_update(key_share=True))


def _refuse_terminal(job: Job, participle: str) -> None:
    if job.state in TERMINAL:
        raise InvalidState(f"{_named(job)} has already {_ENDED[State(job.state)]} and cannot be {participle}.")


def _named(job: Job) -> str:
    """As messages begin with it."""
    word = "job" if job.kind == Kind.TRAIN else NAMES[Kind(job.kind)]
    return f"{word.capitalize()} {job.id}"


_ENDED: dict[State, Any] = {
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "been cancelled",
}
