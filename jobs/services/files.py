"""Files: stored and checked, listed, deleted. They arrive as local files; receiving them is HTTP's part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy.orm import Session

from jobs.artifacts import ArtifactStore
from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound, ServiceError
from jobs.ids import FILE, new_id
from jobs.repositories import files
from jobs.repositories.text import clean
from jobs.services import dataset, once, quotas, result_files
from jobs.services.dataset import Report
from jobs.services.once import Ticket
from jobs.services.paging import Page, cut
from jobs.storage import StorageError
from jobs.tables import File

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
MAX_FILENAME = 255
MIN_EXPIRES_S, MAX_EXPIRES_S = 3600, 2_592_000
"""An hour and 30 days, as OpenAI has it."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Received:
    """A file on this machine's disk, not yet stored."""

    path: Path
    filename: str
    purpose: str
    bytes: int
    sha256: str
    expires_s: int | None = None
    """Seconds it is to be kept."""

    def as_request(self) -> dict[str, Any]:
        """What tells its request from another one."""
        return {
            "sha256": self.sha256,
            "filename": self.filename,
            "purpose": self.purpose,
            "expires_s": self.expires_s,
        }


def check_purpose(purpose: str | None) -> str:
    """Refuse a purpose files cannot have."""
    if not purpose:
        raise InvalidRequest("purpose is required.", "purpose", "missing_required_parameter")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}.", "purpose")
    return purpose


def create(ctx: Context, project_id: str, received: Received, ticket: Ticket | None = None) -> File:
    """Store an upload; a fine-tune file must be a dataset.

    Raises:
        InvalidRequest: it is empty or has an unknown purpose.
        DataError: it is for fine-tuning and a line cannot be used.
        InsufficientQuota: the project keeps as much as it may.
        InProgress: a retry has taken the work of `ticket` over.
    """
    check_purpose(received.purpose)
    if not received.bytes:
        raise InvalidRequest("The file is empty.", "file", "invalid_file_format")
    summary = None
    if received.purpose == "fine-tune":
        summary = dataset.check(received.path, max_line_bytes=ctx.settings.max_line_bytes).as_json()

    def room(session: Session) -> None:
        quotas.require_file(ctx, session, project_id, received.bytes)

    def finished(session: Session, file: File) -> None:
        once.finish(session, ticket, file.id)

    return keep(ctx, project_id, received, summary=summary, before=room, after=finished)


def keep(
    ctx: Context,
    project_id: str,
    received: Received,
    *,
    summary: dict[str, Any] | None,
    problem: str | None = None,
    before: Callable[[Session], None],
    after: Callable[[Session, File], None],
) -> File:
    """Store the bytes of a file and insert its row, in one transaction with what comes before and after it."""
    file_id = new_id(FILE)
    key = f"files/{file_id}"
    ctx.store.put_file(received.path, key)
    try:
        with ctx.db.transaction() as session:
            before(session)
            file = files.insert(
                session,
                project_id,
                id=file_id,
                filename=clean(received.filename, MAX_FILENAME),
                purpose=received.purpose,
                bytes=received.bytes,
                sha256=received.sha256,
                key=key,
                summary=summary,
                problem=problem,
                expires_s=received.expires_s,
            )
            after(session, file)
            return file
    except ServiceError:
        forget(ctx.store, [key])
        raise


def get(ctx: Context, project_id: str, file_id: str) -> File:
    """One file, its bytes written. Raises NotFound."""
    with ctx.db.read() as session:
        file = files.get(session, project_id, file_id)
    if file is not None and not file.sha256:
        file = result_files.write(ctx.settings, ctx.db, ctx.store, file)
    if file is None:
        raise _missing(file_id)
    return file


def page(
    ctx: Context, project_id: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
) -> Page[File]:
    """Files by creation time. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = files.place(session, project_id, after) if after is not None else None
        if after is not None and start is None:
            raise InvalidRequest(f"No such File object: {after}", "after")
        found = files.page(session, project_id, after=start, limit=limit + 1, order=order, purpose=purpose)
    return cut(found, limit)


def validate(ctx: Context, project_id: str, file_id: str) -> Report:
    """What is wrong with a file as a dataset, line by line. Raises NotFound."""
    file = get(ctx, project_id, file_id)
    return dataset.report(ctx.store.read(file.key, 0, file.bytes), max_line_bytes=ctx.settings.max_line_bytes)


def delete(ctx: Context, project_id: str, file_id: str) -> None:
    """Delete a file. Raises NotFound, and InvalidRequest while a job needs it."""
    with ctx.db.transaction() as session:
        file = files.get(session, project_id, file_id, lock="update")
        if file is None:
            raise _missing(file_id)
        user = files.active_user(session, project_id, file_id)
        if user is not None:
            raise InvalidRequest(f"File {file_id} is used by the unfinished job {user}.", "id", "file_in_use")
        files.delete(session, project_id, file_id)
    forget(ctx.store, [file.key])


def forget(store: ArtifactStore, keys: list[str]) -> None:
    """Delete bytes that no row points to any more."""
    for key in keys:
        try:
            store.delete(key)
        except StorageError:  # they are gone for everybody; the sweeper has another try
            _log.warning("bytes of a deleted file are still there", key=key, exc_info=True)


def _missing(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}", "id")
