"""The outbox of webhooks: rows are written with the end of a job, claimed, and marked with what became of the try.

A claim moves `next_at` past the longest time a try can take, so nobody else sends the same try meanwhile and a sender
that dies leaves a row that is due again. Deliveries are hence at least once; the id, the same in every try, lets
receivers tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import WEBHOOK, is_id, new_id
from jobs.kinds import Kind
from jobs.repositories.dialect import insert
from jobs.repositories.text import clean
from jobs.states import State, wire_status
from jobs.tables import Delivery, Job

MAX_ERROR = 1024
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Due:
    """A claimed try."""

    id: str
    job_id: str
    type: str
    url: str
    created_at: float
    attempt: int
    """Number of this try, from 1."""
    sent_at: float
    """Unix seconds of the claim, on the database's clock."""


def enqueue(session: Session, job_id: str) -> None:
    """Write the webhook of a job that is over, in the transaction that ends it; for others this does nothing.

    Over means what clients see: a job whose worker is still to stop is cancelled for them, and the second call, when
    the worker has stopped, adds nothing.
    """
    columns = (Job.project_id, Job.state, Job.webhook_url, Job.kind)
    project_id, state, url, kind = session.execute(sa.select(*columns).where(Job.id == job_id)).one()
    status = wire_status(State(state))
    if url is None or status not in _ENDS or kind != Kind.TRAIN:  # the events are of fine-tuning jobs
        return
    statement = insert(session, Delivery).values(
        id=new_id(WEBHOOK),
        project_id=project_id,
        job_id=job_id,
        type=f"fine_tuning.job.{status}",
        url=url,
        created_at=now(),
        state="pending",
        attempts=0,
        next_at=now(),
    )
    session.execute(statement.on_conflict_do_nothing(index_elements=["job_id", "type"]))


def count_due(session: Session, limit: int) -> int:
    """How many deliveries are due, counted up to `limit`."""
    due = sa.select(Delivery.id).where(*_due()).limit(limit).subquery()
    return session.scalar(sa.select(sa.func.count()).select_from(due)) or 0


def claim_due(session: Session, lease_s: float) -> Due | None:
    """Take the try that has been due longest; nobody else gets it for `lease_s` seconds."""
    oldest = sa.select(Delivery.id).where(*_due()).order_by(Delivery.next_at, Delivery.id).limit(1)
    delivery_id = session.scalar(oldest.with_for_update(skip_locked=True))
    if delivery_id is None:
        return None
    statement = sa.update(Delivery).where(Delivery.id == delivery_id, *_due())
    statement = statement.values(attempts=Delivery.attempts + 1, next_at=now() + lease_s)
    columns = (Delivery.id, Delivery.job_id, Delivery.type, Delivery.url, Delivery.created_at, Delivery.attempts, now())
    row = session.execute(statement.execution_options(synchronize_session=False).returning(*columns)).one_or_none()
    return None if row is None else Due(*row)


def mark_delivered(session: Session, due: Due, status: int) -> None:
    """The receiver has it, whoever else may be trying meanwhile."""
    where = (Delivery.id == due.id, Delivery.state != "delivered")
    values = {"state": "delivered", "delivered_at": now(), "last_status": status, "last_error": None}
    session.execute(sa.update(Delivery).where(*where).values(**values))


def mark_failed(session: Session, due: Due, status: int | None, error: str, retry_in_s: float | None) -> bool:
    """Try again in `retry_in_s` seconds, or never: a dead letter. False when another try has begun since."""
    where = (Delivery.id == due.id, Delivery.state == "pending", Delivery.attempts == due.attempt)
    values = {"last_status": status, "last_error": clean(error, MAX_ERROR)}
    again = {"state": "dead"} if retry_in_s is None else {"next_at": now() + retry_in_s}
    statement = sa.update(Delivery).where(*where).values(**values, **again)
    return session.scalar(statement.execution_options(synchronize_session=False).returning(Delivery.id)) is not None


def of_job(session: Session, job_id: str) -> list[Delivery]:
    """The deliveries of a job, oldest first."""
    where = Delivery.job_id == job_id
    return list(session.scalars(sa.select(Delivery).where(where).order_by(Delivery.created_at, Delivery.id)))


def get(session: Session, job_id: str, delivery_id: str) -> Delivery | None:
    """One delivery of a job."""
    if not is_id(WEBHOOK, delivery_id):
        return None
    statement = sa.select(Delivery).where(Delivery.id == delivery_id, Delivery.job_id == job_id)
    return session.scalar(statement.execution_options(populate_existing=True))


def revive(session: Session, job_id: str, delivery_id: str) -> bool:
    """Begin a dead delivery again, with all its tries; False when the job has no dead delivery of this id."""
    where = (Delivery.id == delivery_id, Delivery.job_id == job_id, Delivery.state == "dead")
    statement = sa.update(Delivery).where(*where).values(state="pending", attempts=0, next_at=now())
    return session.scalar(statement.execution_options(synchronize_session=False).returning(Delivery.id)) is not None


def _due() -> tuple[sa.ColumnElement[bool], ...]:
    return Delivery.state == "pending", Delivery.next_at <= now()
