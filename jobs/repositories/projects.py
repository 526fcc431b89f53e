"""Projects of an organisation."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import PROJECT, is_id, new_id
from jobs.limits import ProjectLimits
from jobs.tenant_tables import DEFAULT_PROJECT, Project


def insert(session: Session, organization_id: str, name: str) -> Project:
    """Add a project without limits of its own."""
    values = {"id": new_id(PROJECT), "organization_id": organization_id, "name": name, "created_at": now()}
    return session.scalars(sa.insert(Project).values(**values, limits={}).returning(Project)).one()


def get(session: Session, organization_id: str, project_id: str) -> Project | None:
    """One project, archived or not."""
    if project_id != DEFAULT_PROJECT and not is_id(PROJECT, project_id):
        return None
    where = (Project.id == project_id, Project.organization_id == organization_id)
    return session.scalar(sa.select(Project).where(*where).execution_options(populate_existing=True))


def page(
    session: Session, organization_id: str, *, after: Project | None, limit: int, archived: bool = False
) -> list[Project]:
    """Up to `limit` projects, newest first; with the archived ones if asked."""
    keys = (Project.created_at, Project.id)
    statement = sa.select(Project).where(Project.organization_id == organization_id)
    if not archived:
        statement = statement.where(Project.archived_at.is_(None))
    if after is not None:
        there = sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id)
        statement = statement.where(sa.tuple_(*keys) < there)
    return list(session.scalars(statement.order_by(*(key.desc() for key in keys)).limit(limit)))


def update(session: Session, organization_id: str, project_id: str, **values: Any) -> Project | None:
    """Change columns; None when there is no such project."""
    if get(session, organization_id, project_id) is None:
        return None
    statement = sa.update(Project).where(Project.id == project_id).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))
    return get(session, organization_id, project_id)


def archive(session: Session, organization_id: str, project_id: str) -> Project | None:
    """Refuse its keys from now on. Archiving again changes nothing."""
    at = sa.func.coalesce(Project.archived_at, now())
    return update(session, organization_id, project_id, archived_at=at)


def existing(session: Session, organization_id: str, project_ids: list[str]) -> set[str]:
    """Which of these are projects of the organisation that are not archived."""
    where = (Project.id.in_(project_ids), Project.organization_id == organization_id, Project.archived_at.is_(None))
    return set(session.scalars(sa.select(Project.id).where(*where)))


def limits(session: Session, project_id: str) -> ProjectLimits:
    """The limits set for a project; none at all when there is no such project."""
    return ProjectLimits.stored(session.scalar(sa.select(Project.limits).where(Project.id == project_id)))


def limited(session: Session, *names: str) -> list[tuple[str, ProjectLimits]]:
    """Projects for which an administrator set one of these limits."""
    rows = session.execute(sa.select(Project.id, Project.limits))
    found = [(project_id, ProjectLimits.stored(values)) for project_id, values in rows if values]
    return [(project_id, each) for project_id, each in found if any(getattr(each, name) is not None for name in names)]
