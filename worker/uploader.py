"""Publishes a trainer's checkpoints, in a thread of its own: verify, copy to the artifact store, then insert the row.

The row is what makes a checkpoint exist, and it is written under the epoch guard, so a worker that lost its job may
copy files but never publishes them. Several tries for each; a checkpoint that cannot be published is given up with a
warning unless it is the final one, without which the job cannot succeed.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
from pathlib import Path

import structlog

from bgpo.records import CheckpointRecord
from jobs.artifacts import MANIFEST, ArtifactError, ArtifactStore, sha256_of
from jobs.db import Database
from jobs.repositories import checkpoints

_RETRY_AFTER_S = (1.0, 5.0, 15.0)
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
    """Takes (record, directory) pairs from the supervising thread, in order.

    A supervised trainer leaves its checkpoint directories to us: each is deleted when it is done with.
    """

    def __init__(self, database: Database, store: ArtifactStore, job_id: str, epoch: int) -> None:
        super().__init__(name=f"uploader-{job_id}", daemon=True)
        self.final_published = False
        self.failure: str | None = None
        """Why the last checkpoint was not published."""
        self.published = 0
        self._database, self._store = database, store
        self._job_id, self._epoch = job_id, epoch
        self._queue: queue.SimpleQueue[tuple[CheckpointRecord, Path] | None] = queue.SimpleQueue()
        self._abandoned = threading.Event()

    def put(self, record: CheckpointRecord, directory: Path) -> None:
        """Queue a checkpoint."""
        self._queue.put((record, directory))

    def close(self) -> None:
        """Publish what is queued and end; `is_alive` turns false when that is done."""
        self._queue.put(None)

    def abandon(self) -> None:
        """Start no further upload. One under way goes on, to no effect once the job is not ours."""
        self._abandoned.set()
        self._queue.put(None)

    def run(self) -> None:
        while (item := self._queue.get()) is not None and not self._abandoned.is_set():
            record, directory = item
            try:
                self._publish(record, directory)
            finally:
                shutil.rmtree(directory, ignore_errors=True)

    def _publish(self, record: CheckpointRecord, directory: Path) -> None:
        for delay in (*_RETRY_AFTER_S, None):
            try:
                self._try_publish(record, directory)
                self.failure = None
                return
            except Exception as error:  # storage and database clients raise anything; the job must hear of it
                _log.warning("checkpoint not published", job_id=self._job_id, step=record.step, exc_info=True)
                self.failure = f"the checkpoint of step {record.step} could not be stored: {error}"
            if delay is None or self._abandoned.wait(delay):
                return

    def _try_publish(self, record: CheckpointRecord, directory: Path) -> None:
        verify(directory)
        key = f"checkpoints/{self._job_id}/{self._epoch}/step-{record.step:06d}"
        manifest = self._store.publish_directory(directory, key)
        with self._database.transaction() as session:
            row = checkpoints.insert(
                session, self._job_id, self._epoch, record.step, key, manifest, record.final, record.metrics
            )
        if row is not None:  # else the job is not ours any more, or is being cancelled: the supervisor knows already
            self.published += 1
            self.final_published |= record.final
