"""The lowest layer of the job plane: the one UPDATE that changes a job's state, and the lock a worker's writes take.

Everything above (`claims`, `jobs`, `job_rows`) goes through `move`; nothing else in the project sets `state`.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import webhooks
from jobs.states import ACTIVE, TERMINAL, Actor, State, sources
from jobs.tables import Job


def move(
    session: Session, job_id: str, target: State, actor: Actor, *where: sa.ColumnElement[bool], **values: Any
) -> bool:
    """The one conditional UPDATE that changes a job's state; with an end go its webhooks."""
    before = sources(target, actor)
    statement = sa.update(Job).where(Job.id == job_id, Job.state.in_(before), *where)
    if target in TERMINAL:
        values = {"finished_at": sa.func.coalesce(Job.finished_at, now()), **values}
    if target not in ACTIVE:
        values = {"lease_owner": None, "lease_until": None, "phase": None, **values}
    statement = statement.values(state=target, **values).execution_options(synchronize_session=False)
    if session.scalar(statement.returning(Job.id)) is None:
        return False
    told = before == {State.CANCELLING}  # clients saw `cancelled` from then on
    if (target in TERMINAL or target == State.CANCELLING) and not told:
        webhooks.enqueue(session, job_id)
    return True


def hold(session: Session, job_id: str, epoch: int) -> State | None:
    """Lock the row for this transaction; its state, or None when `epoch` no longer holds the job."""
    where = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    state = session.scalar(sa.select(Job.state).where(*where).with_for_update(key_share=True))
    return None if state is None else State(state)
