"""Removes what crashes leave behind: stored files that no row points to, half-written ones, uploads half received.

Something is removed only when it is older than `orphan_age_s`, on the clock of the store that holds it, and when no row
points to it; that is asked again right before. A checkpoint's folder belongs to one attempt (job and epoch), and an
attempt that has ended can never publish again, so a folder whose attempt has ended and which no row names is an orphan
for ever: there is no race with a publish, whatever the clocks say. Rows are never removed here: a row whose files are
missing is a damaged checkpoint, or a disk that is not mounted, and not ours to decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

import structlog

from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.ids import FILE, PART, is_id
from jobs.kinds import is_job_id
from jobs.repositories import checkpoints, files, uploads
from jobs.settings import Settings
from jobs.storage.base import Stored
from jobs.storage.local import UNFINISHED

_BATCH = 500  # keys in one question to the database
_FOLDER_DEPTH = 4  # parts of checkpoints/JOB/EPOCH/NAME
_log = structlog.get_logger(__name__)


def sweep(settings: Settings, database: Database, store: ArtifactStore) -> int:
    """Remove all orphans and return how many folders and files that were. Any number of sweeps may run at once.

    Raises:
        StorageError: the store cannot be used; what was found before is gone.
    """
    removed = sweep_scratch(settings.scratch, time.time() - settings.orphan_age_s)
    if not store.is_empty():
        before = store.now() - settings.orphan_age_s
        whole, parts, published = (list(store.walk(folder)) for folder in ("files", "uploads", "checkpoints"))
        removed += _sweep_unfinished(database, store, whole + parts + published, before)
        removed += _sweep_objects(store, _named(whole, before, 2, FILE), lambda keys: _known_files(database, keys))
        removed += _sweep_objects(store, _named(parts, before, 3, PART), lambda keys: _known_parts(database, keys))
        removed += _sweep_checkpoints(database, store, published, before)
    if removed:
        _log.info("orphans removed", count=removed)
    return removed


def sweep_scratch(folder: Path, before: float) -> int:
    """Delete this machine's uploads in progress that were last written before a time (unix seconds)."""
    removed = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # its request has just ended
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed


def _sweep_unfinished(database: Database, store: ArtifactStore, listed: Iterable[Stored], before: float) -> int:
    """Local stores only: files that were being written when their process died."""
    old = [found.key for found in listed if UNFINISHED.search(found.key) and found.modified < before]
    attempts = {key: attempt for key in old if (attempt := _attempt(key)) is not None}
    with database.read() as session:
        writing = checkpoints.being_written(session, attempts.values())
    gone = [key for key in old if attempts.get(key) not in writing]
    for key in gone:
        store.delete(key)
    return len(gone)


def _named(listed: Iterable[Stored], before: float, depth: int, prefix: str) -> Iterator[str]:
    """Old objects whose key has so many parts, the last of them an id with `prefix`."""
    for found in listed:
        parts = PurePosixPath(found.key).parts
        if found.modified < before and len(parts) == depth and is_id(prefix, parts[-1]):
            yield found.key


def _sweep_objects(store: ArtifactStore, keys: Iterator[str], known: Callable[[list[str]], set[str]]) -> int:
    """Files and parts of uploads whose row was never written, or is deleted."""
    removed = 0
    for key in _orphans(keys, known):
        if not known([key]):
            store.delete(key)
            removed += 1
    return removed


def _known_files(database: Database, keys: list[str]) -> set[str]:
    with database.read() as session:
        return files.known_keys(session, keys)


def _known_parts(database: Database, keys: list[str]) -> set[str]:
    with database.read() as session:
        return uploads.known_keys(session, keys)


def _sweep_checkpoints(database: Database, store: ArtifactStore, listed: Iterable[Stored], before: float) -> int:
    """Folders `checkpoints/JOB/EPOCH/NAME` without a row, of attempts that have ended."""
    newest: dict[str, float] = {}
    for found in listed:
        parts = PurePosixPath(found.key).parts
        if len(parts) > _FOLDER_DEPTH and _attempt(found.key) is not None:
            folder = "/".join(parts[:_FOLDER_DEPTH])
            newest[folder] = max(newest.get(folder, 0.0), found.modified)
    old = (folder for folder, modified in newest.items() if modified < before)
    removed = 0
    for folder in _orphans(old, lambda keys: _known_folders(database, keys)):
        if not _known_folders(database, [folder]):
            store.delete_directory(folder)
            removed += 1
    return removed


def _known_folders(database: Database, keys: list[str]) -> set[str]:
    """Those a row points to, or still may."""
    attempts = {key: attempt for key in keys if (attempt := _attempt(key)) is not None}
    with database.read() as session:
        writing = checkpoints.being_written(session, attempts.values())
        known = checkpoints.known_keys(session, keys)  # second: an attempt that ended in between has its row by now
    return known | {key for key, attempt in attempts.items() if attempt in writing}


def _attempt(key: str) -> tuple[str, int] | None:
    """The attempt (job id, epoch) that a key of a checkpoint names."""
    parts = PurePosixPath(key).parts
    if len(parts) < _FOLDER_DEPTH or parts[0] != "checkpoints" or not is_job_id(parts[1]) or not parts[2].isdecimal():
        return None
    return parts[1], int(parts[2])


def _orphans(keys: Iterator[str], known: Callable[[list[str]], set[str]]) -> Iterator[str]:
    """Those of `keys` that are not known, asked for in batches."""
    while batch := list(islice(keys, _BATCH)):
        yield from sorted(set(batch) - known(batch))
