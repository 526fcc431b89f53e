"""Attempts: one row for each claim of a job. What a job has used up is computed from them, never counted along."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.failures import JobError
from jobs.repositories.text import clean
from jobs.repositories.transitions import hold
from jobs.states import State
from jobs.tables import Attempt, Checkpoint, Job

MAX_MESSAGE = 8192


def add(session: Session, job_id: str, epoch: int, worker_id: str, host: str | None) -> None:
    """A worker has claimed the job."""
    values = {"job_id": job_id, "epoch": epoch, "worker_id": worker_id, "host": host, "started_at": now()}
    session.execute(sa.insert(Attempt).values(**values))


def start(session: Session, job_id: str, epoch: int, *, pid: int, devices: list[str], resumed_step: int | None) -> bool:
    """Its trainer has started at the checkpoint of `resumed_step`, None = base model; False when not ours any more."""
    if hold(session, job_id, epoch) is None:
        return False
    _update(session, job_id, epoch, pid=pid, devices=devices, resumed_step=resumed_step)
    return True


def close(
    session: Session,
    job_id: str,
    epoch: int,
    outcome: State,
    *,
    error: JobError | None = None,
    exit_code: int | None = None,
    signal: int | None = None,
) -> None:
    """It is over: `outcome` is the job's new state."""
    values: dict[str, Any] = {
        "ended_at": sa.func.coalesce(Attempt.ended_at, now()),
        "outcome": outcome,
        "exit_code": exit_code,
        "signal": signal,
    }
    if error is not None:
        values |= {
            "error_code": error.code,
            "error_message": clean(error.message, MAX_MESSAGE),
            "error_phase": error.phase,
            "error_step": error.step,
        }
    _update(session, job_id, epoch, **values)


def lost(session: Session, job_id: str, epoch: int, lease_until: float) -> None:
    """Its worker is gone: it lasted until the end of the lease, however much later that is noticed."""
    ended = sa.case((Attempt.started_at > lease_until, Attempt.started_at), else_=lease_until)
    _update(session, job_id, epoch, ended_at=ended)


def of_job(session: Session, job_id: str) -> list[Attempt]:
    """All attempts of a job, oldest first."""
    return list(session.scalars(sa.select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch)))


def runtime_s() -> sa.ScalarSelect[float]:
    """Seconds the attempts of the enclosing query's job took together; one still running counts until now."""
    seconds = sa.func.coalesce(Attempt.ended_at, now()) - Attempt.started_at
    total = sa.func.coalesce(sa.func.sum(seconds), 0.0)
    return sa.select(total).where(Attempt.job_id == Job.id).correlate(Job).scalar_subquery()


def waiting_since() -> sa.ColumnElement[float]:
    """Since when the enclosing query's job waits in the queue: for an interrupted one, since its last attempt ended."""
    ended = sa.select(sa.func.max(Attempt.ended_at)).where(Attempt.job_id == Job.id).correlate(Job).scalar_subquery()
    queued = sa.func.coalesce(Job.queued_at, Job.created_at)
    return sa.case((ended > queued, ended), else_=queued)


def oom_steps(session: Session, job_id: str) -> list[int]:
    """Steps at which attempts ran out of memory and since which no checkpoint was made, newest first."""
    later = sa.exists().where(Checkpoint.job_id == job_id, Checkpoint.epoch > Attempt.epoch)
    where = (Attempt.job_id == job_id, Attempt.error_code == "oom", ~later)
    steps = session.scalars(sa.select(Attempt.error_step).where(*where).order_by(Attempt.epoch.desc()))
    return [step for step in steps if step is not None]


def _update(session: Session, job_id: str, epoch: int, **values: Any) -> None:
    statement = sa.update(Attempt).where(Attempt.job_id == job_id, Attempt.epoch == epoch).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))
