"""Which checkpoints are kept: the last few of a job, its best, what is pinned, and what some job goes on or
starts from.

Rows go first, in one transaction, and their files after it: a reader who finds a row finds its files. Files whose
deletion fails, or never starts, are left without a row, and `jobs.services.sweep` removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from bgpo.spec import CheckpointingSpec
from jobs.artifacts import ArtifactStore, StorageError
from jobs.context import Context
from jobs.db import Database
from jobs.errors import InvalidRequest, NotFound
from jobs.repositories import checkpoints, jobs
from jobs.repositories.checkpoints import Kept
from jobs.states import TERMINAL, State
from jobs.tables import Job

_log = structlog.get_logger(__name__)


def surplus(rows: Sequence[Kept], keep_last: int, *, keep_best: bool, in_use: Collection[str]) -> list[Kept]:
    """The checkpoints of a job that need not be kept.

    Kept are the newest `keep_last` and whatever stands between them, the newest that was the best when it was written
    (`keep_best`), pinned and final ones, and those whose id is in `in_use`. A damaged one is neither counted nor the
    best.
    """
    newest_first = sorted(rows, key=lambda row: row.step, reverse=True)
    best = next((row for row in newest_first if row.best and not row.damaged), None) if keep_best else None
    found, newer = [], 0
    for row in newest_first:
        needed = row.pinned or row.final or row is best or row.id in in_use
        if newer >= keep_last and not needed:
            found.append(row)
        newer += not row.damaged
    return found


def apply(database: Database, store: ArtifactStore, job_id: str, epoch: int) -> int:
    """Delete what a running job need not keep, and return how many checkpoints went; for the worker that runs it.

    Does nothing once `epoch` no longer holds the job.
    """
    with database.transaction() as session:
        if jobs.hold(session, job_id, epoch) is None:
            return 0
        job = session.get_one(Job, job_id)
        if job.request is None:
            return 0  # made under schema 0001, which promised to keep every checkpoint
        rule = CheckpointingSpec.model_validate(job.recipe.get("checkpointing", {}))
        rows = checkpoints.lock_all(session, job_id)
        ids = [row.id for row in rows]
        in_use = checkpoints.resumed_from(session, ids) | checkpoints.started_from(session, ids)
        gone = surplus(rows, rule.keep_last, keep_best=rule.keep_best, in_use=in_use)
        checkpoints.remove(session, [row.id for row in gone])
    for row in gone:
        delete_files(store, row.key)
    return len(gone)


def delete_checkpoint(ctx: Context, project_id: str, checkpoint_id: str) -> None:
    """Delete a checkpoint a user names.

    Raises:
        NotFound: no such checkpoint.
        InvalidRequest: it is pinned, the result of its job, or what an unfinished job goes on or starts from.
    """
    with ctx.db.transaction() as session:
        found = checkpoints.get(session, project_id, checkpoint_id)
        rows = checkpoints.lock_all(session, found.job_id) if found is not None else []
        row = next((row for row in rows if row.id == checkpoint_id), None)
        if row is None:
            raise NotFound(f"No such checkpoint: {checkpoint_id}", "id")
        if row.pinned:
            raise InvalidRequest(f"Checkpoint {checkpoint_id} is pinned: unpin it first.", "id", "checkpoint_pinned")
        if row.final:
            raise InvalidRequest(f"Checkpoint {checkpoint_id} is the result of its job.", "id", "checkpoint_in_use")
        if checkpoints.resumed_from(session, [row.id], states=set(State) - TERMINAL):
            message = f"An unfinished job goes on from checkpoint {checkpoint_id}: cancel that job first."
            raise InvalidRequest(message, "id", "checkpoint_in_use")
        if checkpoints.started_from(session, [row.id]):
            message = f"An unfinished job starts from checkpoint {checkpoint_id}: cancel that job first."
            raise InvalidRequest(message, "id", "checkpoint_in_use")
        checkpoints.remove(session, [checkpoint_id])
    delete_files(ctx.store, row.key)


def delete_files(store: ArtifactStore, key: str) -> None:
    """Remove the files of a checkpoint that no row points to any more; the sweeper has another try if this fails."""
    try:
        store.delete_directory(key)
    except StorageError:
        _log.warning("files of a deleted checkpoint are still there", key=key, exc_info=True)
