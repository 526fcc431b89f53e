"""Requests that make an object: looked up, written down, kept alive and finished.

Everything is decided under a lock of the project, so that two of the same requests, arriving together, see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import REQUEST, new_id
from jobs.repositories.dialect import lock_project
from jobs.tables import RequestRow


@dataclass(frozen=True)
class Wanted:
    """A request as it arrived."""

    project_id: str
    caller: str
    operation: str
    digest: str
    key: str | None
    """Idempotency-Key."""
    retry: int
    """Number of the client's own retry, 0 = its first try."""


@dataclass(frozen=True)
class Found:
    """A request that arrived before."""

    id: str
    digest: str
    object_id: str | None
    alive: bool
    """Somebody works on it, or it is done."""


def lock(session: Session, project_id: str) -> None:
    """Let one transaction at a time look for twins of the project and write down what it found."""
    lock_project(session, "requests", project_id)


def by_key(session: Session, wanted: Wanted) -> Found | None:
    """The request that used the idempotency key."""
    where = (RequestRow.operation == wanted.operation, RequestRow.idempotency_key == wanted.key)
    return _one(session, RequestRow.project_id == wanted.project_id, *where)


def twin(session: Session, wanted: Wanted, within_s: float) -> Found | None:
    """The newest request whose retry this can be, which no retry of this number was taken for before; marked as taken.

    Two clients that send the same and both lose their answer so get an object each.
    """
    where = (
        RequestRow.project_id == wanted.project_id,
        RequestRow.caller == wanted.caller,
        RequestRow.operation == wanted.operation,
        RequestRow.digest == wanted.digest,
        RequestRow.idempotency_key.is_(None),
        RequestRow.created_at > now() - within_s,
        RequestRow.retries < wanted.retry,
    )
    found = _one(session, *where)
    if found is not None:
        session.execute(_update(RequestRow.id == found.id).values(retries=wanted.retry))
    return found


def insert(session: Session, wanted: Wanted, token: str, lease_s: float) -> str:
    """Write a request down; its id."""
    values = {
        "id": new_id(REQUEST),
        "project_id": wanted.project_id,
        "caller": wanted.caller,
        "operation": wanted.operation,
        "idempotency_key": wanted.key,
        "digest": wanted.digest,
        "created_at": now(),
        "retries": wanted.retry,
        "token": token,
        "alive_until": now() + lease_s,
    }
    return session.scalars(sa.insert(RequestRow).values(values).returning(RequestRow.id)).one()


def get(session: Session, request_id: str) -> Found | None:
    """One request; None when it made nothing and is forgotten."""
    return _one(session, RequestRow.id == request_id)


def take_over(session: Session, request_id: str, token: str, lease_s: float) -> bool:
    """Work on a request whose process is gone; False when somebody else was quicker."""
    where = (RequestRow.id == request_id, RequestRow.object_id.is_(None), RequestRow.alive_until < now())
    return _changed(session, _update(*where).values(token=token, alive_until=now() + lease_s))


def renew(session: Session, request_id: str, token: str, lease_s: float) -> bool:
    """Say that the work goes on; False when it is not ours any more."""
    return _changed(session, _update(*_ours(request_id, token)).values(alive_until=now() + lease_s))


def finish(session: Session, request_id: str, token: str, object_id: str) -> bool:
    """The object is made, in this transaction; False when the work is not ours any more and must be undone."""
    return _changed(session, _update(*_ours(request_id, token)).values(object_id=object_id))


def forget(session: Session, request_id: str, token: str) -> None:
    """The request made nothing."""
    session.execute(sa.delete(RequestRow).where(*_ours(request_id, token)))


def purge(session: Session, older_than_s: float) -> None:
    """Drop old requests."""
    session.execute(sa.delete(RequestRow).where(RequestRow.created_at < now() - older_than_s))


def _one(session: Session, *where: sa.ColumnElement[bool]) -> Found | None:
    """The newest."""
    alive = sa.or_(RequestRow.object_id.is_not(None), RequestRow.alive_until >= now())
    statement = sa.select(RequestRow.id, RequestRow.digest, RequestRow.object_id, alive).where(*where)
    row = session.execute(statement.order_by(RequestRow.created_at.desc(), RequestRow.id.desc()).limit(1)).first()
    return None if row is None else Found(row[0], row[1], row[2], bool(row[3]))


def _ours(request_id: str, token: str) -> tuple[sa.ColumnElement[bool], ...]:
    return RequestRow.id == request_id, RequestRow.token == token, RequestRow.object_id.is_(None)


def _update(*where: sa.ColumnElement[bool]) -> sa.Update:
    return sa.update(RequestRow).where(*where).execution_options(synchronize_session=False)


def _changed(session: Session, statement: sa.Update) -> bool:
    return session.scalar(statement.returning(RequestRow.id)) is not None
