"""The audit log: appended to and read, never changed (a trigger holds that)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import AUDIT, is_id, new_id
from jobs.repositories.text import clean
from jobs.tenant_tables import AuditEntry

MAX_PATH = 512


@dataclass(frozen=True)
class Act:
    """What is remembered of a request. Nothing in it is secret: no query, no header, no body."""

    action: str
    path: str
    request_id: str
    status: int
    project_id: str | None = None
    actor: str | None = None
    ip: str | None = None
    object_id: str | None = None
    code: str | None = None


def append(session: Session, act: Act) -> None:
    """Add an entry."""
    values = asdict(act) | {"id": new_id(AUDIT), "created_at": now(), "path": clean(act.path, MAX_PATH)}
    session.execute(sa.insert(AuditEntry).values(**values))


def get(session: Session, entry_id: str) -> AuditEntry | None:
    """One entry."""
    return session.get(AuditEntry, entry_id) if is_id(AUDIT, entry_id) else None


def page(
    session: Session,
    *,
    after: AuditEntry | None,
    limit: int,
    project_ids: Sequence[str] = (),
    actor_ids: Sequence[str] = (),
    event_types: Sequence[str] = (),
    resource_ids: Sequence[str] = (),
    since: float | None = None,
    until: float | None = None,
) -> list[AuditEntry]:
    """Up to `limit` entries, newest first, that match every filter given."""
    keys = (AuditEntry.created_at, AuditEntry.id)
    statement = sa.select(AuditEntry).order_by(*(key.desc() for key in keys)).limit(limit)
    for column, wanted in (
        (AuditEntry.project_id, project_ids),
        (AuditEntry.actor, actor_ids),
        (AuditEntry.action, event_types),
        (AuditEntry.object_id, resource_ids),
    ):
        if wanted:
            statement = statement.where(column.in_(wanted))
    if since is not None:
        statement = statement.where(AuditEntry.created_at >= since)
    if until is not None:
        statement = statement.where(AuditEntry.created_at <= until)
    if after is not None:
        there = sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id)
        statement = statement.where(sa.tuple_(*keys) < there)
    return list(session.scalars(statement))
