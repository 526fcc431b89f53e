"""Publishes a trainer's checkpoints, in a thread of its own: verify, copy to the artifact store, then insert the row.

The row is what makes a checkpoint exist, and it is written under the epoch guard, so a worker that lost its job may
copy files but never publishes them. It is written after the records of the steps before it: an attempt that goes on
from there would report none of them again. Several tries for each; a checkpoint that cannot be published is given up
with a warning unless it is the final one, without which the job cannot succeed. The final one is read back from the
store before its row is written. After each, retention removes what need not be kept.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from bgpo.errors import BgpoError
from bgpo.records import CheckpointRecord
from jobs.artifacts import MANIFEST, ArtifactError, ArtifactStore, StorageError, sha256_of
from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import checkpoints
from jobs.services import retention

_RETRY_AFTER_S = (1.0, 5.0, 15.0, 30.0)
_LOOK_S = 0.05
Recorded = Callable[[], bool]
_log = structlog.get_logger(__name__)


def verify(directory: Path) -> None:
    """Hold a checkpoint directory against the manifest its trainer wrote.

    Raises:
        ArtifactError: a file is missing, extra, or not what the manifest says.
    """
    try:
        listed = {file["path"]: file for file in json.loads((directory / MANIFEST).read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{directory.name} has no readable manifest: {error}") from error
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - {MANIFEST}
    if found != listed.keys():
        raise ArtifactError(f"{directory.name}: files and manifest differ: {sorted(found ^ listed.keys())}")
    for name, file in listed.items():
        if sha256_of(directory / name) != file["sha256"]:
            raise ArtifactError(f"{directory.name}/{name} does not have the sha256 of its manifest")


class Uploader(threading.Thread):
    """Takes checkpoints from the supervising thread, in order.

    A supervised trainer leaves its checkpoint directories to us: each is deleted when it is done with.
    """

    def __init__(self, database: Database, store: ArtifactStore, job_id: str, epoch: int) -> None:
        super().__init__(name=f"uploader-{job_id}", daemon=True)
        self.final_published = False
        self.failure: JobError | None = None
        """Why the last checkpoint was not published (yet): `disk_full`, `storage_unavailable` or `server_error`."""
        self.given_up = False
        """After several tries, or because the next one was waiting; false again once a later one is published."""
        self.published = 0
        self._database, self._store = database, store
        self._job_id, self._epoch = job_id, epoch
        self._queue: queue.SimpleQueue[tuple[CheckpointRecord, Path, Recorded] | None] = queue.SimpleQueue()
        self._newest_step = -1
        self._keys: set[str] = set()
        self._abandoned = threading.Event()

    def put(self, record: CheckpointRecord, directory: Path, recorded: Recorded = lambda: True) -> None:
        """Queue a checkpoint. `recorded` tells whether everything that was reported before it is in the database."""
        self._newest_step = record.step
        self._queue.put((record, directory, recorded))

    def close(self) -> None:
        """Publish what is queued and end; `is_alive` turns false when that is done."""
        self._queue.put(None)

    def abandon(self) -> None:
        """Start no further upload. One under way goes on, to no effect once the job is not ours."""
        self._abandoned.set()
        self._queue.put(None)

    def run(self) -> None:
        while (item := self._queue.get()) is not None and not self._abandoned.is_set():
            record, directory, recorded = item
            try:
                if self._publish(record, directory, recorded):
                    self._retain()
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def _publish(self, record: CheckpointRecord, directory: Path, recorded: Recorded) -> bool:
        for delay in (*_RETRY_AFTER_S, None):
            try:
                published = self._try_publish(record, directory, recorded)
                self.failure, self.given_up = None, False
                return published
            except Exception as error:  # storage and database clients raise anything; the job must hear of it
                known = isinstance(error, BgpoError)
                _log.warning(
                    "checkpoint not published",
                    job_id=self._job_id,
                    step=record.step,
                    error=str(error),
                    exc_info=not known,
                )
                code = error.code if isinstance(error, StorageError) else "server_error"
                message = f"the checkpoint of step {record.step} could not be stored: {error}"
                self.failure = JobError(code, message, phase="checkpointing", step=record.step)
            superseded = record.step < self._newest_step  # a newer one waits, and is worth more
            self.given_up = superseded or delay is None
            if delay is None or superseded or self._abandoned.wait(delay):
                return False
        return False

    def _try_publish(self, record: CheckpointRecord, directory: Path, recorded: Recorded) -> bool:
        verify(directory)
        key = self._new_key(record.step)
        manifest = self._store.publish_directory(directory, key, read_back=record.final)
        while not recorded():
            if self._abandoned.wait(_LOOK_S):
                return False
        with self._database.transaction() as session:
            old = checkpoints.replaced_key(session, self._job_id, record.step, key)
            row = checkpoints.insert(
                session,
                self._job_id,
                self._epoch,
                record.step,
                key,
                manifest,
                record.final,
                record.metrics,
                best=record.best,
            )
        if row is None:  # the job is not ours any more, or is being cancelled: the supervisor knows already
            return False
        self._keys.add(key)
        self.published += 1
        self.final_published |= record.final
        if old is not None:
            retention.delete_files(self._store, old)
        return True

    def _new_key(self, step: int) -> str:
        """A folder no row points to: files of a published checkpoint are never overwritten."""
        key = f"checkpoints/{self._job_id}/{self._epoch}/step-{step:06d}"
        return f"{key}-{len(self._keys)}" if key in self._keys else key

    def _retain(self) -> None:
        """Delete what need not be kept any more. Failing is no reason to stop: the next checkpoint tries again."""
        try:
            retention.apply(self._database, self._store, self._job_id, self._epoch)
        except Exception:  # as above
            _log.warning("old checkpoints not deleted", job_id=self._job_id, exc_info=True)
