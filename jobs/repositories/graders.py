"""Stored graders and their versions, within a project. A version is written once."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import GRADER, is_id, new_id
from jobs.tables import GraderVersion, StoredGrader


def insert(session: Session, project_id: str, name: str, definition: dict[str, Any]) -> StoredGrader:
    """Add a grader with its version 1."""
    values = {"id": new_id(GRADER), "project_id": project_id, "name": name, "created_at": now(), "latest": 1}
    grader = session.scalars(sa.insert(StoredGrader).values(values).returning(StoredGrader)).one()
    _insert_version(session, grader.id, 1, definition)
    return grader


def add_version(session: Session, project_id: str, grader_id: str, definition: dict[str, Any]) -> int | None:
    """Add the next version; its number, or None when there is no such grader."""
    if not is_id(GRADER, grader_id):
        return None
    where = StoredGrader.id == grader_id, StoredGrader.project_id == project_id
    counted = sa.update(StoredGrader).where(*where).values(latest=StoredGrader.latest + 1)
    number: int | None = session.scalar(
        counted.execution_options(synchronize_session=False).returning(StoredGrader.latest)
    )
    if number is not None:
        _insert_version(session, grader_id, number, definition)
    return number


def get(session: Session, project_id: str, grader_id: str) -> StoredGrader | None:
    """One grader by id."""
    if not is_id(GRADER, grader_id):
        return None
    statement = sa.select(StoredGrader).where(StoredGrader.id == grader_id, StoredGrader.project_id == project_id)
    return session.scalar(statement.execution_options(populate_existing=True))


def version(session: Session, grader_id: str, number: int) -> GraderVersion | None:
    """One version of a grader."""
    return session.get(GraderVersion, (grader_id, number)) if number < 1 << 63 else None


def page(
    session: Session, project_id: str, *, after: StoredGrader | None, limit: int
) -> list[tuple[StoredGrader, GraderVersion]]:
    """Up to `limit` graders, newest first, each with its newest version."""
    keys = StoredGrader.created_at, StoredGrader.id
    newest = sa.and_(GraderVersion.grader_id == StoredGrader.id, GraderVersion.version == StoredGrader.latest)
    statement = sa.select(StoredGrader, GraderVersion).join(GraderVersion, newest)
    statement = statement.where(StoredGrader.project_id == project_id)
    if after is not None:
        statement = statement.where(sa.tuple_(*keys) < sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id))
    found = session.execute(statement.order_by(*(key.desc() for key in keys)).limit(limit))
    return [(grader, version) for grader, version in found]


def versions(session: Session, grader_id: str, *, before: int | None, limit: int) -> list[GraderVersion]:
    """Up to `limit` versions, newest first."""
    statement = sa.select(GraderVersion).where(GraderVersion.grader_id == grader_id)
    if before is not None:
        statement = statement.where(GraderVersion.version < before)
    return list(session.scalars(statement.order_by(GraderVersion.version.desc()).limit(limit)))


def count(session: Session, project_id: str) -> int:
    """How many graders the project has."""
    where = StoredGrader.project_id == project_id
    return session.scalars(sa.select(sa.func.count()).select_from(StoredGrader).where(where)).one()


def delete(session: Session, project_id: str, grader_id: str) -> bool:
    """Remove a grader with all its versions."""
    if get(session, project_id, grader_id) is None:
        return False
    session.execute(sa.delete(GraderVersion).where(GraderVersion.grader_id == grader_id))
    gone = sa.delete(StoredGrader).where(StoredGrader.id == grader_id).returning(StoredGrader.id)
    return session.scalar(gone) is not None


def _insert_version(session: Session, grader_id: str, number: int, definition: dict[str, Any]) -> None:
    values = {"grader_id": grader_id, "version": number, "created_at": now(), "definition": definition}
    session.execute(sa.insert(GraderVersion).values(values))
