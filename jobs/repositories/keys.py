"""Keys of projects and of administrators. Both kinds have the same columns but for whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.tenant_tables import AdminKey, ApiKey, Project

USED_EVERY_S = 60
"""How exactly the last use of a key is remembered."""


@dataclass(frozen=True)
class Found:
    """A key as it is checked: its hash, what it opens, and how it stands now."""

    id: str
    digest: str
    organization_id: str
    project_id: str | None
    """None: an administrator's key."""
    scopes: Sequence[str]
    expires_at: float | None
    revoked: bool
    archived: bool
    read_at: float
    """On the database's clock."""
    limits: dict[str, Any]
    used_at: float | None


def find(session: Session, key_id: str) -> Found | None:
    """A project's key by its id."""
    columns = (ApiKey.digest, Project.organization_id, ApiKey.project_id, ApiKey.scopes, ApiKey.expires_at)
    state = (ApiKey.revoked_at.is_not(None), Project.archived_at.is_not(None), now())
    statement = sa.select(*columns, *state, Project.limits, ApiKey.last_used_at)
    row = session.execute(statement.join(Project, Project.id == ApiKey.project_id).where(ApiKey.id == key_id)).first()
    return None if row is None else Found(key_id, *row)


def find_admin(session: Session, key_id: str) -> Found | None:
    """An administrator's key by its id."""
    columns = (AdminKey.digest, AdminKey.organization_id, AdminKey.expires_at, AdminKey.revoked_at.is_not(None))
    row = session.execute(sa.select(*columns, now(), AdminKey.last_used_at).where(AdminKey.id == key_id)).first()
    if row is None:
        return None
    digest, organization_id, expires_at, revoked, read_at, used_at = row
    return Found(key_id, digest, organization_id, None, (), expires_at, revoked, False, read_at, {}, used_at)


def touch(session: Session, kind: type[ApiKey] | type[AdminKey], key_id: str) -> None:
    """Remember that a key was used."""
    old = sa.or_(kind.last_used_at.is_(None), kind.last_used_at < now() - USED_EVERY_S)
    statement = sa.update(kind).where(kind.id == key_id, old).values(last_used_at=now())
    session.execute(statement.execution_options(synchronize_session=False))


def insert(session: Session, project_id: str, *, id: str, expires_in_s: float | None, **values: Any) -> ApiKey:
    """Add a project's key."""
    row = values | {"id": id, "project_id": project_id, "created_at": now(), "expires_at": _expiry(expires_in_s)}
    return session.scalars(sa.insert(ApiKey).values(row).returning(ApiKey)).one()


def insert_admin(session: Session, organization_id: str, *, id: str, expires_in_s: float | None, **v: Any) -> AdminKey:
    """Add an administrator's key."""
    row = v | {"id": id, "organization_id": organization_id, "created_at": now(), "expires_at": _expiry(expires_in_s)}
    return session.scalars(sa.insert(AdminKey).values(row).returning(AdminKey)).one()


def get(session: Session, project_id: str, key_id: str) -> ApiKey | None:
    """One key of a project, revoked or not."""
    where = (ApiKey.id == key_id, ApiKey.project_id == project_id)
    return session.scalar(sa.select(ApiKey).where(*where).execution_options(populate_existing=True))


def get_admin(session: Session, organization_id: str, key_id: str) -> AdminKey | None:
    """One administrator's key, revoked or not."""
    where = (AdminKey.id == key_id, AdminKey.organization_id == organization_id)
    return session.scalar(sa.select(AdminKey).where(*where).execution_options(populate_existing=True))


def page(
    session: Session, project_id: str, *, after: ApiKey | None, limit: int, order: Literal["asc", "desc"] = "desc"
) -> list[ApiKey]:
    """Up to `limit` keys of a project that are not revoked."""
    where = (ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None))
    return list(session.scalars(_turned(ApiKey, sa.select(ApiKey).where(*where), after, limit, order)))


def page_admin(
    session: Session,
    organization_id: str,
    *,
    after: AdminKey | None,
    limit: int,
    order: Literal["asc", "desc"] = "desc",
) -> list[AdminKey]:
    """Up to `limit` administrators' keys that are not revoked."""
    where = (AdminKey.organization_id == organization_id, AdminKey.revoked_at.is_(None))
    return list(session.scalars(_turned(AdminKey, sa.select(AdminKey).where(*where), after, limit, order)))


def revoke(session: Session, kind: type[ApiKey] | type[AdminKey], key_id: str) -> None:
    """Refuse a key from now on."""
    statement = sa.update(kind).where(kind.id == key_id, kind.revoked_at.is_(None)).values(revoked_at=now())
    session.execute(statement.execution_options(synchronize_session=False))


def expire_in(session: Session, kind: type[ApiKey] | type[AdminKey], key_id: str, seconds: float) -> None:
    """Let a key expire after a while, unless it does so sooner."""
    ends = now() + seconds
    sooner = sa.case((kind.expires_at < ends, kind.expires_at), else_=ends)
    statement = sa.update(kind).where(kind.id == key_id).values(expires_at=sooner)
    session.execute(statement.execution_options(synchronize_session=False))


def _expiry(seconds: float | None) -> Any:
    return None if seconds is None else now() + seconds


def _turned(kind: Any, statement: Any, after: Any, limit: int, order: str) -> Any:
    keys = (kind.created_at, kind.id)
    if after is not None:
        here, there = sa.tuple_(*keys), sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id)
        statement = statement.where(here > there if order == "asc" else here < there)
    return statement.order_by(*(key.asc() if order == "asc" else key.desc() for key in keys)).limit(limit)
