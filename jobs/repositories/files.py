"""Files of a project: uploaded ones, and the results of its jobs.

A file whose time is over is there for nobody, except while an unfinished job uses it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import FILE, is_id, new_id
from jobs.states import TERMINAL
from jobs.tables import File, Job

RESULTS = ("step_metrics.csv", "metrics.jsonl")
"""Names of the files that a job which has succeeded leaves."""
RESULT_PURPOSE = "fine-tune-results"


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
    summary: dict[str, Any] | None = None,
    problem: str | None = None,
    expires_s: int | None = None,
) -> File:
    """Add a file whose bytes are already stored, to be kept for `expires_s` seconds (None = until it is deleted)."""
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
        "problem": problem,
        "expires_at": None if expires_s is None else now() + expires_s,
    }
    return session.scalars(sa.insert(File).values(values).returning(File)).one()


def get(
    session: Session, project_id: str, file_id: str, *, lock: Literal["share", "update"] | None = None
) -> File | None:
    """One file by id, locked until the end of the transaction if asked."""
    if not is_id(FILE, file_id):
        return None
    statement = sa.select(File).where(File.id == file_id, File.project_id == project_id, _there())
    if lock is not None:
        statement = statement.with_for_update(read=lock == "share")
    return session.scalar(statement)


def place(session: Session, project_id: str, file_id: str) -> File | None:
    """Where a page starts: the row, also of a file that has expired since the page before."""
    if not is_id(FILE, file_id):
        return None
    return session.scalar(sa.select(File).where(File.id == file_id, File.project_id == project_id))


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
    statement = sa.select(File).where(File.project_id == project_id, _there()).order_by(*directed).limit(limit)
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


def insert_results(session: Session, job: Job) -> list[str]:
    """Add the result files of a job whose bytes are still to be written; their ids."""
    ids = [new_id(FILE) for _ in RESULTS]
    for file_id, name in zip(ids, RESULTS, strict=True):
        values = {
            "id": file_id,
            "project_id": job.project_id,
            "created_at": now(),
            "filename": name,
            "purpose": RESULT_PURPOSE,
            "bytes": 0,
            "sha256": "",
            "key": f"files/{file_id}",
            "job_id": job.id,
        }
        session.execute(sa.insert(File).values(values))
    return ids


def delete_results(session: Session, job_id: str) -> list[str]:
    """Remove the result files of a job; the keys of their bytes."""
    return list(session.scalars(sa.delete(File).where(File.job_id == job_id).returning(File.key)))


def unwritten(session: Session, limit: int = 100) -> list[File]:
    """Result files without bytes."""
    return list(session.scalars(sa.select(File).where(File.sha256 == "").order_by(File.id).limit(limit)))


def set_written(session: Session, file_id: str, size: int, sha256: str) -> File | None:
    """The bytes of a result file are stored. None when it has been deleted meanwhile."""
    statement = sa.update(File).where(File.id == file_id).values(bytes=size, sha256=sha256)
    return session.scalar(statement.returning(File).execution_options(populate_existing=True))


def take_expired(session: Session, limit: int = 100) -> list[str]:
    """Delete files whose time is over and which no unfinished job uses; the keys of their bytes."""
    over = (File.expires_at.is_not(None), File.expires_at <= now(), ~_in_use())
    statement = sa.select(File).where(*over).order_by(File.expires_at).limit(limit).with_for_update(skip_locked=True)
    keys = []
    for file in list(session.scalars(statement)):
        # A job may have been made between the look and the lock: a new statement sees it.
        if active_user(session, file.project_id, file.id) is None and delete(session, file.project_id, file.id):
            keys.append(file.key)
    return keys


def known_keys(session: Session, keys: Collection[str]) -> set[str]:
    """Which of these keys of the artifact store a row points to."""
    return set(session.scalars(sa.select(File.key).where(File.key.in_(keys))))


def _there() -> sa.ColumnElement[bool]:
    return sa.or_(File.expires_at.is_(None), File.expires_at > now(), _in_use())


def _in_use() -> sa.ColumnElement[bool]:
    """By an unfinished job."""
    reads = sa.or_(Job.training_file == File.id, Job.validation_file == File.id)
    return sa.exists().where(Job.project_id == File.project_id, Job.state.not_in(TERMINAL), reads)
