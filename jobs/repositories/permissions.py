"""Which projects a checkpoint is shared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import PERMISSION, is_id, new_id
from jobs.repositories.dialect import insert as dialect_insert
from jobs.tenant_tables import CheckpointPermission


def share(session: Session, checkpoint_id: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
    """Let projects read a checkpoint; one that may already keeps its permission."""
    for project_id in project_ids:
        values = {"id": new_id(PERMISSION), "checkpoint_id": checkpoint_id, "project_id": project_id}
        statement = dialect_insert(session, CheckpointPermission).values(**values, created_at=now())
        session.execute(statement.on_conflict_do_nothing(index_elements=["checkpoint_id", "project_id"]))
    where = (
        CheckpointPermission.checkpoint_id == checkpoint_id,
        CheckpointPermission.project_id.in_(project_ids),
    )
    return list(session.scalars(sa.select(CheckpointPermission).where(*where).order_by(CheckpointPermission.id)))


def get(session: Session, checkpoint_id: str, permission_id: str) -> CheckpointPermission | None:
    """One permission of a checkpoint."""
    if not is_id(PERMISSION, permission_id):
        return None
    where = (CheckpointPermission.id == permission_id, CheckpointPermission.checkpoint_id == checkpoint_id)
    return session.scalar(sa.select(CheckpointPermission).where(*where))


def page(
    session: Session,
    checkpoint_id: str,
    *,
    after: CheckpointPermission | None,
    limit: int,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> list[CheckpointPermission]:
    """Up to `limit` permissions by creation time."""
    keys = (CheckpointPermission.created_at, CheckpointPermission.id)
    up = order == "ascending"
    statement = sa.select(CheckpointPermission).where(CheckpointPermission.checkpoint_id == checkpoint_id)
    if project_id is not None:
        statement = statement.where(CheckpointPermission.project_id == project_id)
    if after is not None:
        here, there = sa.tuple_(*keys), sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id)
        statement = statement.where(here > there if up else here < there)
    return list(session.scalars(statement.order_by(*(key.asc() if up else key.desc() for key in keys)).limit(limit)))


def delete(session: Session, checkpoint_id: str, permission_id: str) -> bool:
    """Take a permission back; False when there was none."""
    where = (CheckpointPermission.id == permission_id, CheckpointPermission.checkpoint_id == checkpoint_id)
    gone = sa.delete(CheckpointPermission).where(*where).returning(CheckpointPermission.id)
    return session.scalar(gone) is not None
