"""Budgets that are used up: of a project's month, and of single jobs. Running jobs pause after a checkpoint, waiting
ones at once; `jobs.finish` makes a success of one whose own budget says `stop`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.failures import JobError, explain
from jobs.repositories import attempts, events, judge_usage
from jobs.repositories.transitions import move
from jobs.states import Actor, State
from jobs.tables import Job

EXCEEDED = "budget_exceeded"
_UNDER_WAY = (State.QUEUED, State.RUNNING)


def pause(session: Session, project_id: str, error: JobError) -> list[str]:
    """Pause what runs or waits of a project; the ids of those that did."""
    where = (Job.project_id == project_id, Job.state.in_(_UNDER_WAY))
    statement = sa.select(Job.id, Job.state).where(*where).order_by(Job.id)
    rows = session.execute(statement.with_for_update(skip_locked=True, key_share=True)).all()
    for job_id, state in rows:
        _pause(session, job_id, state, error)
    return [job_id for job_id, _ in rows]


def pause_overrunning(session: Session) -> list[str]:
    """Pause jobs that have used up their own budget; their ids."""
    where = (Job.budget.is_not(None), Job.state.in_(_UNDER_WAY))
    paused = []
    for job_id in session.scalars(sa.select(Job.id).where(*where).order_by(Job.id)).all():
        used_up = exceeded(session, job_id)
        if used_up is None:
            continue
        locked = sa.select(Job.state).where(Job.id == job_id, *where)
        state = session.scalar(locked.with_for_update(skip_locked=True, key_share=True))
        if state is not None:
            _pause(session, job_id, state, JobError(EXCEEDED, used_up[1]))
            paused.append(job_id)
    return paused


def exceeded(session: Session, job_id: str) -> tuple[str, str] | None:
    """Which limit of its own budget a job has used up, by its name, and that in words; None while some is left."""
    row = session.execute(sa.select(Job.budget, Job.gpus, attempts.runtime_s()).where(Job.id == job_id)).one()
    budget = row.budget or {}
    limit = budget.get("gpu_seconds")
    seconds = row.gpus * row[2]
    if limit is not None and seconds >= limit:
        return "gpu_seconds", f"the job has used {seconds:.0f} of the {limit:g} accelerator-seconds of its budget"
    limit = budget.get("judge_tokens")
    if limit is not None and (tokens := judge_usage.of_job(session, job_id)) >= limit:
        return "judge_tokens", f"the job has used {tokens} of the {limit} judge tokens of its budget"
    return None


def stops(session: Session, job_id: str) -> str | None:
    """Why a job that pauses is to end there instead, in words: its own budget is used up, and says `stop`."""
    paused_for, budget = session.execute(sa.select(Job.pause_code, Job.budget).where(Job.id == job_id)).one()
    if paused_for != EXCEEDED or budget is None or budget["on_exceed"] != "stop":
        return None
    used_up = exceeded(session, job_id)
    return None if used_up is None else used_up[1]


def _pause(session: Session, job_id: str, state: str, error: JobError) -> None:
    message = explain(error)
    target = State.PAUSING if state == State.RUNNING else State.PAUSED
    move(session, job_id, target, Actor.RECONCILER, desired="pause", pause_code=error.code, pause_message=message)
    word = "Pausing after the next checkpoint" if target == State.PAUSING else "Fine-tuning job paused"
    events.append(session, job_id, None, "warn", f"{word}: {message}", data={"code": error.code})
