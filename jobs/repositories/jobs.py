"""Jobs as workers and the reconciler see them: claim, lease, transitions. `job_rows` has the users' side.

Each function is one or a few conditional UPDATEs guarded by the epoch; no row changed means that another worker has the
job (or nobody may have it any more), and the caller must stop. Transitions take their source states from
`jobs.states`; nothing else in the project sets `state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import events, webhooks
from jobs.repositories.dialect import is_postgresql
from jobs.repositories.text import clean
from jobs.resources import Bell, Slot
from jobs.states import ACTIVE, TERMINAL, Actor, State, allowed, sources
from jobs.tables import Attempt, Job


@dataclass(frozen=True)
class Claim:
    """What a worker needs to know about the job it has claimed."""

    job_id: str
    project_id: str
    epoch: int
    recipe: dict[str, Any]
    model: str
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
    """Seconds until its deadline; None without one."""
    oom_step: int | None = None
    """Step at which an earlier attempt ran out of memory and since which no checkpoint was made."""


@dataclass(frozen=True)
class JobError:
    """Why an attempt or a job failed, for its user; `code` is one of `jobs.failures`, `detail` the end of the log."""

    code: str
    message: str
    param: str | None = None
    detail: str | None = None
    phase: str | None = None
    step: int | None = None


def move(
    session: Session, job_id: str, target: State, actor: Actor, *where: sa.ColumnElement[bool], **values: Any
) -> bool:
    """The one conditional UPDATE that changes a job's state."""
    statement = sa.update(Job).where(Job.id == job_id, Job.state.in_(sources(target, actor)), *where)
    if target in TERMINAL:
        values = {"finished_at": sa.func.coalesce(Job.finished_at, now()), **values}
    if target not in ACTIVE:
        values = {"lease_owner": None, "lease_until": None, "phase": None, **values}
    statement = statement.values(state=target, **values).execution_options(synchronize_session=False)
    return session.scalar(statement.returning(Job.id)) is not None


def hold(session: Session, job_id: str, epoch: int) -> State | None:
    """Lock the row for this transaction; its state, or None when `epoch` no longer holds the job."""
    where = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    state = session.scalar(sa.select(Job.state).where(*where).with_for_update(key_share=True))
    return None if state is None else State(state)


def claim(session: Session, job_id: str, worker_id: str, lease_s: float) -> Claim | None:
    """Take a queued job: a new epoch, a lease, an attempt. None when there is nothing to take."""
    ready = (Job.state == State.QUEUED, Job.desired == "run", Job.not_before <= now())
    if is_postgresql(session):  # do not wait behind another claimer
        free = sa.select(Job.id).where(Job.id == job_id, *ready).with_for_update(skip_locked=True, key_share=True)
        if session.scalar(free) is None:
            return None
    lease = {"lease_owner": worker_id, "lease_until": now() + lease_s}
    started = {"started_at": sa.func.coalesce(Job.started_at, now()), "epoch": Job.epoch + 1, "phase": None}
    if not move(session, job_id, State.RUNNING, Actor.WORKER, *ready, **lease, **started):
        return None
    job = session.get_one(Job, job_id, populate_existing=True)
    session.add(Attempt(job_id=job_id, epoch=job.epoch, worker_id=worker_id, started_at=now()))
    message = "Fine-tuning job started" if job.epoch == 1 else f"Fine-tuning job continues, attempt {job.epoch}"
    events.append(session, job_id, None, "info", message)
    return Claim(
        job_id=job.id,
        project_id=job.project_id,
        epoch=job.epoch,
        recipe=job.recipe,
        model=job.model,
        training_file=job.training_file,
        validation_file=job.validation_file,
        resume_checkpoint_id=job.resume_checkpoint_id,
        last_step=job.last_step,
        total_steps=job.total_steps,
        attempts_left=job.attempts_left,
        trained=job.final_checkpoint_id is not None,
        gpus=job.gpus,
        gpu_type=job.gpu_type,
    )


def claim_next(session: Session, slot: Slot, lease_s: float, *, max_running: int | None = None) -> Claim | None:
    """Take the queued job that is next for this worker, if there is one.

    Args:
        max_running: jobs of one project that may run at once; None = any number.
    """
    fits = (Job.gpus <= slot.gpus, sa.or_(Job.gpu_type.is_(None), Job.gpu_type == slot.gpu_type))
    ready = (Job.state == State.QUEUED, Job.desired == "run", Job.not_before <= now())
    order = (Job.priority.desc(), Job.queued_at, Job.id)
    for job_id in session.scalars(sa.select(Job.id).where(*fits, *ready).order_by(*order).limit(8)):
        claimed = claim(session, job_id, slot.worker_id, lease_s)
        if claimed is not None:
            return claimed
    return None


def renew(session: Session, job_id: str, epoch: int, lease_s: float) -> str | None:
    """Extend the lease; what the user wants ("run", "pause", "cancel"), or None when the job is not ours any more."""
    desired: str | None = _write(session, job_id, epoch, Job.desired, lease_until=now() + lease_s)
    return desired


def desired(session: Session, job_id: str, epoch: int) -> str | None:
    """What `renew` returns, without renewing: cheap enough to ask each second."""
    where = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    return session.scalar(sa.select(Job.desired).where(*where))


def set_phase(session: Session, job_id: str, epoch: int, phase: str, step: int) -> bool:
    """Record what the run does now; False when the job is not ours any more."""
    return _write(session, job_id, epoch, Job.id, phase=phase, last_step=step) is not None


def finish(
    session: Session,
    job_id: str,
    epoch: int,
    state: State | str,
    *,
    error: JobError | None = None,
    exit_code: int | None = None,
    signal: int | None = None,
) -> bool:
    """End the run as succeeded, failed, cancelled or paused; False when the job is not ours any more.

    A job being cancelled becomes cancelled, whatever the run came to. `succeeded` needs a final checkpoint.
    """
    current, target = hold(session, job_id, epoch), State(state)
    if current is None:
        return False
    if current == State.CANCELLING:
        target = State.CANCELLED
    if not allowed(current, target, Actor.WORKER):
        raise ValueError(f"a worker cannot end a {current} job as {target}")
    if target == State.FAILED and error is None:
        raise ValueError("a failed job needs an error")
    _end(session, job_id, target, Actor.WORKER, error if target == State.FAILED else None)
    _close_attempt(session, job_id, epoch, target, exit_code, signal)
    return True


def hand_back(
    session: Session,
    job_id: str,
    epoch: int,
    *,
    spend_attempt: bool,
    reason: str,
    not_before_s: float = 0,
    code: str = "worker_lost",
    detail: str | None = None,
    exit_code: int | None = None,
    signal: int | None = None,
) -> bool:
    """Give the job up so that it goes on from its last checkpoint; False when it is not ours any more.

    With `spend_attempt` (a crash, not a drain) and no attempt left it fails with `code`, `reason` and `detail`. A job
    being cancelled or paused becomes cancelled or paused.
    """
    current = hold(session, job_id, epoch)
    if current is None:
        return False
    error = JobError(code, reason, detail=detail)
    outcome = _release(session, job_id, current, Actor.WORKER, spend_attempt, error, not_before_s)
    _close_attempt(session, job_id, epoch, outcome, exit_code, signal)
    return True


def reap(session: Session, reap_after_s: float, *, limit: int = 50) -> list[str]:
    """Take jobs from workers whose lease ended more than `reap_after_s` ago; their ids."""
    expired = (Job.state.in_(ACTIVE), Job.lease_until < now() - reap_after_s)
    statement = sa.select(Job.id, Job.state, Job.epoch).where(*expired).order_by(Job.lease_until).limit(limit)
    rows = list(session.execute(statement.with_for_update(skip_locked=True, key_share=True)))
    for job_id, state, epoch in rows:
        error = JobError("worker_lost", "the worker was lost")
        outcome = _release(session, job_id, State(state), Actor.RECONCILER, True, error, 0)
        _close_attempt(session, job_id, epoch, outcome, None, None)
    return [job_id for job_id, _, _ in rows]


def to_ring(session: Session, older_than_s: float = 30, *, limit: int = 100) -> list[Bell]:
    """Queued jobs whose doorbell was never rung, or long ago."""
    ready = (Job.state == State.QUEUED, Job.desired == "run", Job.not_before <= now())
    silent = sa.or_(Job.rung_at.is_(None), Job.rung_at < now() - older_than_s)
    columns = (Job.id, Job.gpus, Job.gpu_type)
    return [
        Bell(*row)
        for row in session.execute(sa.select(*columns).where(*ready, silent).order_by(Job.created_at).limit(limit))
    ]


def mark_rung(session: Session, bells: Iterable[Bell]) -> None:
    """Remember that the doorbell of these jobs was rung now."""
    rung = [bell.job_id for bell in bells]
    statement = sa.update(Job).where(Job.id.in_(rung), Job.state == State.QUEUED).values(rung_at=now())
    session.execute(statement.execution_options(synchronize_session=False))


def made_progress(session: Session, job_id: str, checkpoint_id: str, step: int, *, final: bool) -> None:
    """A checkpoint became durable: resume from it, with all attempts. The caller holds the row."""
    values: dict[str, Any] = {"resume_checkpoint_id": checkpoint_id, "attempts_left": Job.max_attempts}
    if final:
        values["final_checkpoint_id"] = checkpoint_id
    statement = sa.update(Job).where(Job.id == job_id).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))
    events.append(session, job_id, None, "info", f"Checkpoint created at step {step}", data={"step": step})


def _write(session: Session, job_id: str, epoch: int, column: Any, **values: Any) -> Any:
    guard = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    statement = sa.update(Job).where(*guard).values(**values).execution_options(synchronize_session=False)
    return session.scalar(statement.returning(column))


def _release(
    session: Session,
    job_id: str,
    current: State,
    actor: Actor,
    spend_attempt: bool,
    error: JobError,
    not_before_s: float,
) -> State:
    """End a run that did not end by itself, because of `error`. The caller holds the row."""
    if current in (State.CANCELLING, State.PAUSING):
        target = State.CANCELLED if current == State.CANCELLING else State.PAUSED
        _end(session, job_id, target, actor, None)
        return target
    left = session.scalars(sa.select(Job.attempts_left).where(Job.id == job_id)).one() - int(spend_attempt)
    if left <= 0:
        failure = replace(error, message=f"{error.message}; no attempt is left")
        _end(session, job_id, State.FAILED, actor, failure, attempts_left=0)
        return State.FAILED
    again = {"attempts_left": left, "not_before": now() + not_before_s, "rung_at": None}
    move(session, job_id, State.QUEUED, actor, **again)
    message = f"Training was interrupted: {error.message}. It will continue from the last checkpoint"
    events.append(session, job_id, None, "warn" if spend_attempt else "info", message)
    return State.QUEUED


def _end(session: Session, job_id: str, target: State, actor: Actor, error: JobError | None, **values: Any) -> None:
    if error is not None:
        values |= {"error_code": error.code, "error_message": clean(error.message, 8192), "error_param": error.param}
    if not move(session, job_id, target, actor, **values):
        raise RuntimeError(f"job {job_id} changed state while its row was locked")
    if error is not None:
        data = {"code": error.code} | ({"log_tail": clean(error.detail)} if error.detail else {})
        events.append(session, job_id, None, "error", f"The job failed: {error.message}", data=data)
    elif target == State.PAUSED:
        events.append(session, job_id, None, "info", "Fine-tuning job paused")
    elif target == State.SUCCEEDED:
        job = session.get_one(Job, job_id, populate_existing=True)
        if job.final_checkpoint_id is None:
            raise ValueError(f"job {job_id} cannot succeed without a final checkpoint")
        events.append(session, job_id, None, "info", f"New fine-tuned model created: {job.tuned_model}")
        events.append(session, job_id, None, "info", "The job has successfully completed")
    webhooks.enqueue(session, job_id)


def _close_attempt(
    session: Session, job_id: str, epoch: int, outcome: State, exit_code: int | None, signal: int | None
) -> None:
    statement = sa.update(Attempt).where(Attempt.job_id == job_id, Attempt.epoch == epoch)
    ended = {"ended_at": now(), "outcome": outcome, "exit_code": exit_code, "signal": signal}
    session.execute(statement.values(**ended).execution_options(synchronize_session=False))
