"""Pausing a project's jobs because its budget is used up: running ones after a checkpoint, waiting ones at once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.failures import JobError, explain
from jobs.repositories import events
from jobs.repositories.transitions import move
from jobs.states import Actor, State
from jobs.tables import Job


def pause(session: Session, project_id: str, error: JobError) -> list[str]:
    """Pause what runs or waits; the ids of those that did."""
    where = (Job.project_id == project_id, Job.state.in_([State.QUEUED, State.RUNNING]))
    statement = sa.select(Job.id, Job.state).where(*where).order_by(Job.id)
    rows = session.execute(statement.with_for_update(skip_locked=True, key_share=True)).all()
    message = explain(error)
    reason = {"desired": "pause", "pause_code": error.code, "pause_message": message}
    for job_id, state in rows:
        target = State.PAUSING if state == State.RUNNING else State.PAUSED
        move(session, job_id, target, Actor.RECONCILER, **reason)
        word = "Pausing after the next checkpoint" if target == State.PAUSING else "Fine-tuning job paused"
        events.append(session, job_id, None, "warn", f"{word}: {message}", data={"code": error.code})
    return [job_id for job_id, _ in rows]
