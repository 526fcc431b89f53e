"""Stored secrets of a project, encrypted. Values are never part of a list."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.dialect import insert
from jobs.states import TERMINAL
from jobs.tables import Job, Secret
from jobs.vault import Sealed


def put(session: Session, project_id: str, name: str, sealed: Sealed) -> Secret:
    """Create a secret or replace its value."""
    values = {"ciphertext": sealed.ciphertext, "key_id": sealed.key_id, "updated_at": now()}
    statement = insert(session, Secret).values(project_id=project_id, name=name, created_at=now(), **values)
    upsert = statement.on_conflict_do_update(index_elements=["project_id", "name"], set_=values).returning(Secret)
    return session.scalars(upsert.execution_options(populate_existing=True)).one()


def all_of(
    session: Session, project_id: str, names: Collection[str] | None = None, *, lock: bool = False
) -> list[Secret]:
    """The secrets of a project by name; only those named, if names are given. A lock keeps them from being deleted."""
    statement = sa.select(Secret).where(Secret.project_id == project_id).order_by(Secret.name)
    if names is not None:
        statement = statement.where(Secret.name.in_(names))
    if lock:
        statement = statement.with_for_update(read=True)
    return list(session.scalars(statement))


def count(session: Session, project_id: str) -> int:
    """How many secrets the project has."""
    where = Secret.project_id == project_id
    return session.scalars(sa.select(sa.func.count()).select_from(Secret).where(where)).one()


def delete(session: Session, project_id: str, name: str) -> bool:
    """Remove the row."""
    gone = sa.delete(Secret).where(Secret.project_id == project_id, Secret.name == name).returning(Secret.name)
    return session.scalar(gone) is not None


def recipes_in_use(session: Session, project_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Id and recipe of the project's unfinished jobs."""
    statement = sa.select(Job.id, Job.recipe).where(Job.project_id == project_id, Job.state.not_in(TERMINAL))
    return [(job_id, recipe) for job_id, recipe in session.execute(statement)]
