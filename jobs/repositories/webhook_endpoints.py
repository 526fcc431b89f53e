"""Webhook endpoints of a project."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import ENDPOINT, is_id
from jobs.tables import Delivery, WebhookEndpoint
from jobs.vault import Sealed

_OLD_SECRET_S = 24 * 3600.0


def insert(session: Session, project_id: str, endpoint_id: str, sealed: Sealed, **values: Any) -> WebhookEndpoint:
    """Add an endpoint."""
    given = {"ciphertext": sealed.ciphertext, "key_id": sealed.key_id, "created_at": now(), "updated_at": now()}
    statement = sa.insert(WebhookEndpoint).values(id=endpoint_id, project_id=project_id, **given, **values)
    return session.scalars(statement.returning(WebhookEndpoint)).one()


def get(session: Session, project_id: str, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint | None:
    """One endpoint; nobody else changes a locked one until the end of the transaction."""
    if not is_id(ENDPOINT, endpoint_id):
        return None
    where = WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id
    statement = sa.select(WebhookEndpoint).where(*where).execution_options(populate_existing=True)
    return session.scalar(statement.with_for_update(key_share=True) if lock else statement)


def page(session: Session, project_id: str, *, after: WebhookEndpoint | None, limit: int) -> list[WebhookEndpoint]:
    """Up to `limit` endpoints, newest first."""
    keys = WebhookEndpoint.created_at, WebhookEndpoint.id
    statement = sa.select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if after is not None:
        statement = statement.where(sa.tuple_(*keys) < sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id))
    return list(session.scalars(statement.order_by(*(key.desc() for key in keys)).limit(limit)))


def count(session: Session, project_id: str) -> int:
    """How many endpoints the project has."""
    where = WebhookEndpoint.project_id == project_id
    return session.scalars(sa.select(sa.func.count()).select_from(WebhookEndpoint).where(where)).one()


def change(session: Session, endpoint: WebhookEndpoint, **values: Any) -> WebhookEndpoint:
    """Set columns of a locked endpoint."""
    statement = sa.update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id)
    changed = statement.values(**values, updated_at=now()).returning(WebhookEndpoint)
    return session.scalars(changed.execution_options(populate_existing=True)).one()


def replace_secret(
    session: Session, endpoint: WebhookEndpoint, sealed: Sealed, hint: str, *, keep_old: bool
) -> WebhookEndpoint:
    """Give a locked endpoint another secret; the one it had signs for another day, or not at all."""
    kept = (endpoint.ciphertext, endpoint.key_id, now() + _OLD_SECRET_S) if keep_old else (None, None, None)
    old = dict(zip(("old_ciphertext", "old_key_id", "old_until"), kept, strict=True))
    return change(session, endpoint, ciphertext=sealed.ciphertext, key_id=sealed.key_id, secret_hint=hint, **old)


def delete(session: Session, project_id: str, endpoint_id: str) -> bool:
    """Remove an endpoint with all its deliveries, by the cascade of their foreign key."""
    if get(session, project_id, endpoint_id) is None:
        return False
    gone = sa.delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).returning(WebhookEndpoint.id)
    return session.scalar(gone.execution_options(synchronize_session=False)) is not None


def listening(session: Session, project_id: str, event_type: str) -> list[str]:
    """Ids of the active endpoints an event is for; none of them can be deleted before the end of the transaction."""
    statement = sa.select(WebhookEndpoint.id, WebhookEndpoint.event_types).order_by(WebhookEndpoint.id)
    statement = statement.where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.active)
    locked = session.execute(statement.with_for_update(read=True, key_share=True))
    return [endpoint_id for endpoint_id, event_types in locked if event_type in event_types]


def secrets(endpoint: WebhookEndpoint, at: float) -> list[Sealed]:
    """Those that sign at a time on the database's clock, the newest first."""
    found = [Sealed(endpoint.ciphertext, endpoint.key_id)]
    if endpoint.old_ciphertext is not None and endpoint.old_key_id is not None and (endpoint.old_until or 0) > at:
        found.append(Sealed(endpoint.old_ciphertext, endpoint.old_key_id))
    return found


def is_open() -> sa.ColumnElement[bool]:
    """Whether a delivery may be sent as far as its endpoint goes."""
    closed = sa.select(WebhookEndpoint.id).where(WebhookEndpoint.active.is_(False))
    return sa.or_(Delivery.endpoint_id.is_(None), Delivery.endpoint_id.not_in(closed))
