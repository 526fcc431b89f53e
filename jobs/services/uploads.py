"""Files that arrive in parts: begun, filled, completed or cancelled.

A completed upload becomes an ordinary file: the parts are put together on this machine's disk, checked and stored. A
fine-tune file that is no dataset is kept with status `error`, so that its problems can be looked at
(`files.validate`) and nobody sends gigabytes again to learn the next one; no job takes it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bgpo.errors import DataError
from jobs.artifacts import ArtifactError
from jobs.context import Context
from jobs.errors import InvalidRequest, InvalidState, NotFound, ServiceError
from jobs.ids import PART, new_id
from jobs.repositories import files, uploads
from jobs.repositories.text import clean
from jobs.repositories.uploads import State
from jobs.services import dataset, once, quotas
from jobs.services.files import MAX_FILENAME, Received, check_purpose, forget, keep
from jobs.services.once import Ticket
from jobs.storage.base import disk_errors
from jobs.tables import File, Part, Upload
from jobs.wire.uploads import MAX_PARTS, CompleteUpload, CreateUpload

_SPARE = 2
"""Parts may come to so many times the announced bytes: a part whose answer was lost is sent again."""


@dataclass(frozen=True)
class Shown:
    """An upload as it is now."""

    row: Upload
    state: State
    file: File | None
    """What it became, unless that has been deleted."""


@dataclass(frozen=True)
class Piece:
    """The bytes of a part, on this machine's disk."""

    path: Path
    bytes: int
    sha256: str


def create(ctx: Context, project_id: str, body: CreateUpload, ticket: Ticket | None = None) -> Shown:
    """Begin an upload.

    Raises:
        InvalidRequest: a purpose no file can have, or more bytes than an upload may have.
        InsufficientQuota: the file would not fit the project's quota.
        InProgress: a retry has taken the work of `ticket` over.
    """
    check_purpose(body.purpose)
    most = ctx.settings.max_upload_bytes
    if body.bytes > most:
        raise InvalidRequest(f"An upload has at most {most} bytes.", "bytes")
    with ctx.db.transaction() as session:
        quotas.require_file(ctx, session, project_id, body.bytes)
        made = uploads.insert(
            session,
            project_id,
            expires_s=ctx.settings.upload_ttl_s,
            filename=clean(body.filename, MAX_FILENAME),
            purpose=body.purpose,
            mime_type=body.mime_type,
            bytes=body.bytes,
            file_expires_s=body.expires_after.seconds if body.expires_after else None,
        )
        once.finish(session, ticket, made.id)
    return Shown(made, "pending", None)


def get(ctx: Context, project_id: str, upload_id: str) -> Shown:
    """One upload. Raises NotFound."""
    with ctx.db.read() as session:
        row, state = _find(session, project_id, upload_id)
        file = files.get(session, project_id, row.file_id) if row.file_id is not None else None
    return Shown(row, state, file)


def part(ctx: Context, part_id: str) -> Part:
    """A part that was added just now. Raises NotFound."""
    with ctx.db.read() as session:
        found = uploads.part(session, part_id)
    if found is None:
        raise NotFound(f"No such part: {part_id}", "part_id")
    return found


def require_pending(ctx: Context, project_id: str, upload_id: str) -> None:
    """Raises NotFound, and InvalidState for an upload that takes no parts."""
    with ctx.db.read() as session:
        _pending(session, project_id, upload_id, lock=False)


def add_part(ctx: Context, project_id: str, upload_id: str, piece: Piece, ticket: Ticket | None = None) -> Part:
    """Store a part.

    Raises:
        NotFound, InvalidState: no such upload, or it takes no parts.
        InvalidRequest: it is empty, or the parts come to far more than was announced.
        InProgress: a retry has taken the work of `ticket` over.
    """
    if not piece.bytes:
        raise InvalidRequest("The part is empty.", "data")
    part_id = new_id(PART)
    key = f"uploads/{upload_id}/{part_id}"
    require_pending(ctx, project_id, upload_id)
    ctx.store.put_file(piece.path, key)
    try:
        with ctx.db.transaction() as session:
            upload = _pending(session, project_id, upload_id, lock=True)
            there = uploads.parts(session, upload_id)
            most = _SPARE * upload.bytes + ctx.settings.max_part_bytes
            if len(there) >= MAX_PARTS or sum(each.bytes for each in there) + piece.bytes > most:
                raise InvalidRequest(f"The parts come to more than the {upload.bytes} bytes announced.", "data")
            made = uploads.insert_part(session, upload_id, id=part_id, bytes=piece.bytes, sha256=piece.sha256, key=key)
            once.finish(session, ticket, made.id)
            return made
    except ServiceError:
        forget(ctx.store, [key])
        raise


def cancel(ctx: Context, project_id: str, upload_id: str) -> Shown:
    """Give an upload up; one that was given up stays so. Raises NotFound, InvalidState."""
    gone: list[str] = []
    with ctx.db.transaction() as session:
        row, state = _find(session, project_id, upload_id, lock=True)
        if state not in ("pending", "cancelled"):
            raise _over(upload_id, state, "cancelled")
        if state == "pending":
            gone = uploads.end(session, row, "cancelled")
    forget(ctx.store, gone)
    return Shown(row, "cancelled", None)


def complete(ctx: Context, project_id: str, upload_id: str, body: CompleteUpload) -> Shown:
    """Make the file of an upload; the same again gives the same file.

    Raises:
        NotFound, InvalidState: no such upload, or it has ended otherwise.
        InvalidRequest: the parts are not those of the upload, come to another size, or have another md5.
        InsufficientQuota: the project keeps as much as it may.
    """
    with ctx.db.read() as session:
        upload, state = _find(session, project_id, upload_id)
        parts = uploads.parts(session, upload_id)
    if state == "completed" and upload.part_ids == body.part_ids:
        return get(ctx, project_id, upload_id)
    if state != "pending":
        raise _over(upload_id, state, "completed")
    try:
        _make_file(ctx, upload, _chosen(upload, parts, body.part_ids), body)
    except (_Overtaken, InvalidRequest, ArtifactError):  # the latter two also when its parts are gone by now
        if get(ctx, project_id, upload_id).state == "pending":
            raise
        return complete(ctx, project_id, upload_id, body)  # another request has completed it: no third round
    return get(ctx, project_id, upload_id)


class _Overtaken(ServiceError):
    """Another request has ended the upload meanwhile."""


def _make_file(ctx: Context, upload: Upload, parts: Sequence[Part], body: CompleteUpload) -> None:
    gone: list[str] = []

    def completed(session: Session) -> None:
        found = uploads.get(session, upload.project_id, upload.id, lock=True)
        if found is None or found[1] != "pending":
            raise _Overtaken(f"Upload {upload.id} has ended meanwhile.")
        gone.extend(uploads.end(session, found[0], "completed", part_ids=body.part_ids))
        quotas.require_file(ctx, session, upload.project_id, upload.bytes)  # now that it does not count as pending

    def named(session: Session, file: File) -> None:
        uploads.set_file(session, upload.id, file.id)

    with _assembled(ctx, upload, parts, body.md5) as received:
        summary, problem = _checked(ctx, received)
        keep(ctx, upload.project_id, received, summary=summary, problem=problem, before=completed, after=named)
    forget(ctx.store, gone)


def _checked(ctx: Context, received: Received) -> tuple[dict[str, Any] | None, str | None]:
    """What the check of a fine-tune file saw, or what is wrong with it."""
    if received.purpose != "fine-tune":
        return None, None
    try:
        return dataset.check(received.path, max_line_bytes=ctx.settings.max_line_bytes).as_json(), None
    except DataError as error:
        return None, error.message


def _chosen(upload: Upload, parts: Sequence[Part], part_ids: Sequence[str]) -> list[Part]:
    """The parts in the order asked for."""
    known = {each.id: each for each in parts}
    for index, part_id in enumerate(part_ids):
        if part_id not in known:
            raise InvalidRequest(f"Upload {upload.id} has no part {part_id[:64]}.", f"part_ids[{index}]")
    if len(set(part_ids)) != len(part_ids):
        raise InvalidRequest("A part is named twice.", "part_ids")
    chosen = [known[part_id] for part_id in part_ids]
    size = sum(each.bytes for each in chosen)
    if size != upload.bytes:
        raise InvalidRequest(f"The parts come to {size} bytes, but {upload.bytes} were announced.", "part_ids")
    return chosen


@contextmanager
def _assembled(ctx: Context, upload: Upload, parts: Sequence[Part], md5: str | None) -> Iterator[Received]:
    """The parts as one file. Raises InvalidRequest for another md5, ArtifactError for a damaged part."""
    whole, check = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with tempfile.NamedTemporaryFile(dir=ctx.settings.scratch, prefix="assembled-") as target:
        path = Path(target.name)
        with disk_errors(path):
            for each in parts:
                digest = hashlib.sha256()
                for piece in ctx.store.read(each.key, 0, each.bytes):
                    for hashed in (whole, check, digest):
                        hashed.update(piece)
                    target.write(piece)
                if digest.hexdigest() != each.sha256:
                    raise ArtifactError(f"stored part {each.key} does not have the recorded sha256")
            target.flush()
        if md5 is not None and check.hexdigest() != md5.lower():
            raise InvalidRequest(f"The parts have the md5 {check.hexdigest()}, not {md5}.", "md5")
        seconds = upload.file_expires_s
        yield Received(path, upload.filename, upload.purpose, upload.bytes, whole.hexdigest(), seconds)


def _pending(session: Session, project_id: str, upload_id: str, *, lock: bool) -> Upload:
    row, state = _find(session, project_id, upload_id, lock=lock)
    if state != "pending":
        raise InvalidState(f"Upload {upload_id} is {state} and takes no more parts.", "upload_id")
    return row


def _find(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> tuple[Upload, State]:
    found = uploads.get(session, project_id, upload_id, lock=lock)
    if found is None:
        raise NotFound(f"No such Upload object: {upload_id}", "upload_id")
    return found


def _over(upload_id: str, state: State, participle: str) -> InvalidState:
    return InvalidState(f"Upload {upload_id} is {state} and cannot be {participle}.", "upload_id")
