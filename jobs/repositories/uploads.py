"""Uploads in parts. A row is locked by whoever changes its state or its parts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import UPLOAD, is_id, new_id
from jobs.tables import Part, Upload

State = Literal["pending", "completed", "cancelled", "expired"]


def insert(session: Session, project_id: str, *, expires_s: float, **values: Any) -> Upload:
    """Add a pending upload that takes parts for `expires_s` seconds."""
    values |= {"id": new_id(UPLOAD), "project_id": project_id, "state": "pending"}
    values |= {"created_at": now(), "expires_at": now() + expires_s}
    return session.scalars(sa.insert(Upload).values(values).returning(Upload)).one()


def get(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> tuple[Upload, State] | None:
    """One upload, and its state by the clock."""
    if not is_id(UPLOAD, upload_id):
        return None
    over = sa.and_(Upload.state == "pending", Upload.expires_at <= now())
    statement = sa.select(Upload, over).where(Upload.id == upload_id, Upload.project_id == project_id)
    if lock:
        statement = statement.with_for_update(of=Upload)
    row = session.execute(statement.execution_options(populate_existing=True)).first()
    if row is None:
        return None
    return row[0], "expired" if row[1] else cast(State, row[0].state)


def insert_part(session: Session, upload_id: str, *, id: str, bytes: int, sha256: str, key: str) -> Part:
    """Add a part whose bytes are already stored."""
    values = {"id": id, "upload_id": upload_id, "created_at": now(), "bytes": bytes, "sha256": sha256, "key": key}
    return session.scalars(sa.insert(Part).values(values).returning(Part)).one()


def parts(session: Session, upload_id: str) -> list[Part]:
    """All parts, in the order they came."""
    return list(session.scalars(sa.select(Part).where(Part.upload_id == upload_id).order_by(Part.id)))


def part(session: Session, part_id: str) -> Part | None:
    """One part."""
    return session.get(Part, part_id)


def end(session: Session, upload: Upload, state: State, **values: Any) -> list[str]:
    """Give an upload its last state and forget its parts; the keys of their bytes."""
    statement = sa.update(Upload).where(Upload.id == upload.id).values(state=state, **values)
    session.execute(statement.execution_options(synchronize_session="fetch"))
    return list(session.scalars(sa.delete(Part).where(Part.upload_id == upload.id).returning(Part.key)))


def set_file(session: Session, upload_id: str, file_id: str) -> None:
    """What a completed upload became."""
    session.execute(sa.update(Upload).where(Upload.id == upload_id).values(file_id=file_id))


def end_expired(session: Session, limit: int = 100) -> list[str]:
    """End pending uploads whose time is over; the keys of their parts' bytes."""
    over = (Upload.state == "pending", Upload.expires_at <= now())
    statement = sa.select(Upload).where(*over).order_by(Upload.expires_at).limit(limit)
    found = list(session.scalars(statement.with_for_update(skip_locked=True)))
    return [key for upload in found for key in end(session, upload, "expired")]


def purge(session: Session, older_than_s: float) -> None:
    """Drop uploads that ended long ago."""
    over = (Upload.state != "pending", Upload.expires_at < now() - older_than_s)
    session.execute(sa.delete(Upload).where(*over))


def known_keys(session: Session, keys: Collection[str]) -> set[str]:
    """Which of these keys of the artifact store a part points to."""
    return set(session.scalars(sa.select(Part.key).where(Part.key.in_(keys))))
