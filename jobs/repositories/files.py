"""Uploaded files of a project."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import FILE, is_id
from jobs.states import TERMINAL
from jobs.tables import File, Job


def insert(
    session: Session,
    project_id: str,
    *,
    id: str,
    filename: str,
    purpose: str,
    bytes: int,
    sha256: str,
    key: str,
    summary: dict[str, Any] | None,
) -> File:
    """Add a file whose bytes are already stored."""
    values = {
        "id": id,
        "project_id": project_id,
        "created_at": now(),
        "filename": filename,
        "purpose": purpose,
        "bytes": bytes,
        "sha256": sha256,
        "key": key,
        "summary": summary,
    }
    return session.scalars(sa.insert(File).values(values).returning(File)).one()


def get(
    session: Session, project_id: str, file_id: str, *, lock: Literal["share", "update"] | None = None
) -> File | None:
    """One file by id, locked until the end of the transaction if asked."""
    if not is_id(FILE, file_id):
        return None
    statement = sa.select(File).where(File.id == file_id, File.project_id == project_id)
    if lock is not None:
        statement = statement.with_for_update(read=lock == "share")
    return session.scalar(statement)


def page(
    session: Session,
    project_id: str,
    *,
    after: File | None,
    limit: int,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> list[File]:
    """Up to `limit` files by creation time."""
    keys = (File.created_at, File.id)
    directed = [key.asc() if order == "asc" else key.desc() for key in keys]
    statement = sa.select(File).where(File.project_id == project_id).order_by(*directed).limit(limit)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    if after is not None:
        here, there = sa.tuple_(*keys), sa.tuple_(sa.literal(after.created_at, sa.Double()), after.id)
        statement = statement.where(here > there if order == "asc" else here < there)
    return list(session.scalars(statement))


def active_user(session: Session, project_id: str, file_id: str) -> str | None:
    """Id of an unfinished job that reads the file."""
    return session.scalar(
        sa.select(Job.id)
        .where(Job.project_id == project_id, Job.state.not_in(TERMINAL))
        .where(sa.or_(Job.training_file == file_id, Job.validation_file == file_id))
        .limit(1)
    )


def delete(session: Session, project_id: str, file_id: str) -> bool:
    """Remove the row."""
    gone = sa.delete(File).where(File.id == file_id, File.project_id == project_id).returning(File.id)
    return session.scalar(gone) is not None


def known_keys(session: Session, keys: Collection[str]) -> set[str]:
    """Which of these keys of the artifact store a row points to."""
    return set(session.scalars(sa.select(File.key).where(File.key.in_(keys))))
