"""Uploaded files: stored and checked, listed, deleted. They arrive as local files; receiving them is HTTP's part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from jobs.context import Context
from jobs.errors import InsufficientQuota, InvalidRequest, NotFound
from jobs.ids import FILE, new_id
from jobs.repositories import files
from jobs.repositories.text import clean
from jobs.services import dataset, quotas
from jobs.services.paging import Page, cut
from jobs.storage import StorageError
from jobs.tables import File

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
MAX_FILENAME = 255
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Upload:
    """A received file, not yet stored."""

    path: Path
    filename: str
    purpose: str
    bytes: int
    sha256: str


def check_purpose(purpose: str | None) -> str:
    """Refuse a purpose files cannot have."""
    if not purpose:
        raise InvalidRequest("purpose is required.", "purpose", "missing_required_parameter")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", "purpose")
    return purpose


def create(ctx: Context, project_id: str, upload: Upload) -> File:
    """Store an upload; a fine-tune file must be a dataset.

    Raises:
        InvalidRequest: it is empty or has an unknown purpose.
        DataError: it is for fine-tuning and a line cannot be used.
        InsufficientQuota: the project keeps as much as it may.
    """
    purpose = check_purpose(upload.purpose)
    if not upload.bytes:
        raise InvalidRequest("The file is empty.", "file", "invalid_file_format")
    limit = ctx.settings.max_line_bytes
    summary = dataset.check(upload.path, max_line_bytes=limit).as_json() if purpose == "fine-tune" else None
    file_id = new_id(FILE)
    key = f"files/{file_id}"
    ctx.store.put_file(upload.path, key)
    try:
        with ctx.db.transaction() as session:
            quotas.require_file(ctx, session, project_id, upload.bytes)
            return files.insert(
                session,
                project_id,
                id=file_id,
                filename=clean(upload.filename, MAX_FILENAME),
                purpose=purpose,
                bytes=upload.bytes,
                sha256=upload.sha256,
                key=key,
                summary=summary,
            )
    except InsufficientQuota:
        _forget(ctx, key)
        raise


def get(ctx: Context, project_id: str, file_id: str) -> File:
    """One file. Raises NotFound."""
    with ctx.db.read() as session:
        file = files.get(session, project_id, file_id)
    if file is None:
        raise NotFound(f"No such File object: {file_id}", "id")
    return file


def page(
    ctx: Context, project_id: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
) -> Page[File]:
    """Files by creation time. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = files.get(session, project_id, after) if after is not None else None
        if after is not None and start is None:
            raise InvalidRequest(f"No such File object: {after}", "after")
        found = files.page(session, project_id, after=start, limit=limit + 1, order=order, purpose=purpose)
    return cut(found, limit)


def delete(ctx: Context, project_id: str, file_id: str) -> None:
    """Delete a file. Raises NotFound, and InvalidRequest while a job needs it."""
    with ctx.db.transaction() as session:
        file = files.get(session, project_id, file_id, lock="update")
        if file is None:
            raise NotFound(f"No such File object: {file_id}", "id")
        user = files.active_user(session, project_id, file_id)
        if user is not None:
            raise InvalidRequest(f"File {file_id} is used by the unfinished job {user}.", "id", "file_in_use")
        files.delete(session, project_id, file_id)
    _forget(ctx, file.key)


def _forget(ctx: Context, key: str) -> None:
    try:
        ctx.store.delete(key)
    except StorageError:  # there is no row: the file is gone for everybody; the sweeper has another try
        _log.warning("bytes of a deleted file are still there", key=key, exc_info=True)
