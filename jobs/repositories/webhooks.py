"""The outbox of webhooks: rows are written with the end of a job, claimed, and marked with what became of the try.

A claim moves `next_at` past the longest time a try can take, so nobody else sends the same try meanwhile and a sender
that dies leaves a row that is due again. Deliveries are hence at least once; the id, the same in every try, lets
receivers tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import WEBHOOK, is_id, new_id
from jobs.kinds import Kind
from jobs.repositories import webhook_endpoints
from jobs.repositories.dialect import insert
from jobs.repositories.text import clean
from jobs.states import State, wire_status
from jobs.tables import Delivery, Job, WebhookEndpoint
from jobs.vault import Sealed

MAX_ERROR = 1024
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Due:
    """A claimed try."""

    id: str
    project_id: str
    job_id: str
    type: str
    url: str
    created_at: float
    attempt: int
    """Number of this try, from 1."""
    sent_at: float
    """Unix seconds of the claim, on the database's clock."""
    endpoint_id: str | None = None
    secrets: Sequence[Sealed] = ()
    """Of the endpoint. Without one, the installation's secret signs."""


def enqueue(session: Session, job_id: str) -> None:
    """Write the webhooks of a job that is over, in the transaction that ends it; for others this does nothing.

    Over means what clients see: a job whose worker is still to stop is cancelled for them. Each end is told once,
    however often this is called.
    """
    columns = (Job.project_id, Job.state, Job.webhook_url, Job.kind)
    project_id, state, url, kind = session.execute(sa.select(*columns).where(Job.id == job_id)).one()
    status = wire_status(State(state))
    if status not in _ENDS or kind != Kind.TRAIN:  # the events are of fine-tuning jobs
        return
    event_type = f"fine_tuning.job.{status}"
    targets: list[tuple[str | None, str | None]] = [(None, url)] if url is not None else []
    targets += [(endpoint_id, None) for endpoint_id in webhook_endpoints.listening(session, project_id, event_type)]
    for endpoint_id, own_url in targets:
        statement = insert(session, Delivery).values(
            id=new_id(WEBHOOK),
            project_id=project_id,
            job_id=job_id,
            type=event_type,
            endpoint_id=endpoint_id,
            url=own_url,
            created_at=now(),
            state="pending",
            attempts=0,
            next_at=now(),
        )
        session.execute(statement.on_conflict_do_nothing())


def count_due(session: Session, limit: int, *, own: bool = True) -> int:
    """How many deliveries are due, counted up to `limit`; without `own` only those to endpoints."""
    due = sa.select(Delivery.id).where(*_due(own)).limit(limit).subquery()
    return session.scalar(sa.select(sa.func.count()).select_from(due)) or 0


def claim_due(session: Session, lease_s: float, *, own: bool = True) -> Due | None:
    """Take the try that has been due longest; nobody else gets it for `lease_s` seconds."""
    oldest = sa.select(Delivery.id).where(*_due(own)).order_by(Delivery.next_at, Delivery.id).limit(1)
    delivery_id = session.scalar(oldest.with_for_update(skip_locked=True))
    if delivery_id is None:
        return None
    statement = sa.update(Delivery).where(Delivery.id == delivery_id, *_due(own))
    statement = statement.values(attempts=Delivery.attempts + 1, next_at=now() + lease_s)
    claimed = session.execute(statement.execution_options(synchronize_session=False).returning(Delivery, now()))
    row = claimed.one_or_none()
    return None if row is None else _claimed(session, *row)


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


def _due(own: bool) -> tuple[sa.ColumnElement[bool], ...]:
    due = Delivery.state == "pending", Delivery.next_at <= now(), webhook_endpoints.is_open()
    return due if own else (*due, Delivery.endpoint_id.is_not(None))


def _claimed(session: Session, row: Delivery, sent_at: float) -> Due:
    url, secrets = row.url, []
    if row.endpoint_id is not None:
        endpoint = session.get_one(WebhookEndpoint, row.endpoint_id, populate_existing=True)
        url, secrets = endpoint.url, webhook_endpoints.secrets(endpoint, sent_at)
    assert url is not None
    return Due(
        id=row.id,
        project_id=row.project_id,
        job_id=row.job_id,
        type=row.type,
        url=url,
        created_at=row.created_at,
        attempt=row.attempts,
        sent_at=sent_at,
        endpoint_id=row.endpoint_id,
        secrets=secrets,
    )
