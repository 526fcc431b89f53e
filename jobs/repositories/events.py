"""Events of a job. `seq` is counted on the job's row in the same transaction, hence gap-free and in commit order."""

from __future__ import annotations

from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import EVENT, is_id, new_id
from jobs.repositories.text import clean, clean_in
from jobs.states import State
from jobs.tables import Event, Job

Level = Literal["info", "warn", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the least to the most serious."""
MAX_MESSAGE = 8192


def append(
    session: Session,
    job_id: str,
    epoch: int | None,
    level: Level,
    message: str,
    type: Literal["message", "metrics"] = "message",
    data: dict[str, Any] | None = None,
    event_id: str | None = None,
) -> int | None:
    """Add an event and return its seq; None when `epoch` no longer holds the job.

    `epoch` is None for events of the API and the reconciler. A cancelled job shows nothing more of its worker: the
    event is dropped and 0 returned.

    Args:
        event_id: the event is added once; should it be there already, nothing changes. For a transaction that is
            repeated because its commit was not answered, and may have happened.
    """
    if event_id is not None:
        lock = sa.select(Job.id).where(Job.id == job_id).with_for_update(key_share=True)
        session.execute(lock)  # before looking: the first try may still be at its commit
        if (there := seq_of(session, job_id, event_id)) is not None:
            return there
    statement = sa.update(Job).where(Job.id == job_id).values(event_seq=Job.event_seq + 1)
    if epoch is not None:
        statement = statement.where(Job.epoch == epoch, Job.state.in_([State.RUNNING, State.PAUSING]))
    seq: int | None = session.scalar(statement.returning(Job.event_seq))
    if seq is None:
        return 0 if epoch is not None and _being_cancelled(session, job_id, epoch) else None
    session.execute(
        sa.insert(Event).values(
            job_id=job_id,
            seq=seq,
            id=event_id or new_id(EVENT),
            epoch=epoch,
            created_at=now(),
            level=level,
            type=type,
            message=clean(message, MAX_MESSAGE),
            data=clean_in(data),
        )
    )
    return seq


def _being_cancelled(session: Session, job_id: str, epoch: int) -> bool:
    where = (Job.id == job_id, Job.epoch == epoch, Job.state == State.CANCELLING)
    return session.scalar(sa.select(Job.id).where(*where)) is not None


def origin() -> sa.ScalarSelect[Any]:
    """The data of the first event of the enclosing query's job: which request made it (`jobs.origin`)."""
    first = sa.select(Event.data).where(Event.job_id == Job.id, Event.seq == 1)
    return first.correlate(Job).scalar_subquery()


def page(session: Session, job_id: str, *, before_seq: int | None, limit: int) -> list[Event]:
    """Up to `limit` events, newest first, older than `before_seq`."""
    statement = sa.select(Event).where(Event.job_id == job_id).order_by(Event.seq.desc()).limit(limit)
    if before_seq is not None:
        statement = statement.where(Event.seq < before_seq)
    return list(session.scalars(statement))


def since(session: Session, job_id: str, after_seq: int, limit: int) -> list[Event]:
    """Up to `limit` events, oldest first, newer than `after_seq`."""
    where = (Event.job_id == job_id, Event.seq > after_seq)
    return list(session.scalars(sa.select(Event).where(*where).order_by(Event.seq).limit(limit)))


def metrics_since(session: Session, job_id: str, after_seq: int, limit: int) -> list[Event]:
    """Up to `limit` events about metrics, oldest first, newer than `after_seq`."""
    where = (Event.job_id == job_id, Event.seq > after_seq, Event.type == "metrics")
    return list(session.scalars(sa.select(Event).where(*where).order_by(Event.seq).limit(limit)))


def seq_of(session: Session, job_id: str, event_id: str) -> int | None:
    """The seq of an event by its public id."""
    if not is_id(EVENT, event_id):
        return None
    return session.scalar(sa.select(Event.seq).where(Event.job_id == job_id, Event.id == event_id))
