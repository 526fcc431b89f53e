"""Removes what crashes leave behind: stored files that no row points to, half-written ones, local scratch.

Something is removed only when it is older than `orphan_age_s`, on the clock of the store that holds it, and when no row
points to it; that is asked again right before. A checkpoint's folder belongs to one attempt (job and epoch), and an
attempt that has ended can never publish again, so a folder whose attempt has ended and which no row names is an orphan
for ever: there is no race with a publish, whatever the clocks say. Rows are never removed here: a row whose files are
missing is a damaged checkpoint, or a disk that is not mounted, and not ours to decide.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import structlog

from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.ids import FILE, JOB, is_id
from jobs.repositories import checkpoints, files
from jobs.settings import Settings
from jobs.storage.local import UNFINISHED

_BATCH = 500  # keys in one question to the database
_log = structlog.get_logger(__name__)


def sweep(settings: Settings, database: Database, store: ArtifactStore) -> int:
    """Remove all orphans and return how many folders and files that were. Any number of sweeps may run at once.

    Raises:
        StorageError: the store cannot be used; what was found before is gone.
    """
    removed = sweep_local(settings, database)
    if not store.is_empty():
        before = store.now() - settings.orphan_age_s
        removed += _sweep_unfinished(store, before)
        removed += _sweep_files(database, store, before)
        removed += _sweep_checkpoints(database, store, before)
    if removed:
        _log.info("orphans removed", count=removed)
    return removed


def sweep_local(settings: Settings, database: Database) -> int:
    """The same on this machine: uploads that were being received, folders of attempts that have ended."""
    before = time.time() - settings.orphan_age_s
    removed = sweep_scratch(settings.scratch, before)
    attempts = {
        (folder.parent.name, int(folder.name)): folder
        for folder in (settings.home / "work").glob("*/*")
        if is_id(JOB, folder.parent.name) and folder.name.isdecimal() and _newest(folder) < before
    }
    with database.read() as session:
        ended = attempts.keys() - checkpoints.being_written(session, attempts)
    for attempt in ended:
        shutil.rmtree(attempts[attempt], ignore_errors=True)
    return removed + len(ended)


def sweep_scratch(folder: Path, before: float) -> int:
    """Delete the files of a folder that were last written before a time (unix seconds)."""
    old = [path for path in folder.glob("*") if path.is_file() and _newest(path) < before]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _sweep_unfinished(store: ArtifactStore, before: float) -> int:
    """Local stores only: files that were being written when their process died."""
    old = [
        found.key
        for prefix in ("files", "checkpoints")
        for found in store.walk(prefix)
        if UNFINISHED.search(found.key) and found.modified < before
    ]
    for key in old:
        store.delete(key)
    return len(old)


def _sweep_files(database: Database, store: ArtifactStore, before: float) -> int:
    """Uploads whose row was never written, or is deleted."""
    old = (
        found.key
        for found in store.walk("files")
        if found.modified < before and is_id(FILE, PurePosixPath(found.key).name) and found.key.count("/") == 1
    )
    removed = 0
    for key in _orphans(old, lambda keys: _known_files(database, keys)):
        if not _known_files(database, [key]):
            store.delete(key)
            removed += 1
    return removed


def _known_files(database: Database, keys: list[str]) -> set[str]:
    with database.read() as session:
        return files.known_keys(session, keys)


def _sweep_checkpoints(database: Database, store: ArtifactStore, before: float) -> int:
    """Folders `checkpoints/JOB/EPOCH/NAME` without a row, of attempts that have ended."""
    newest: dict[str, float] = {}
    for found in store.walk("checkpoints"):
        parts = PurePosixPath(found.key).parts
        if len(parts) > 4 and is_id(JOB, parts[1]) and parts[2].isdecimal():
            folder = "/".join(parts[:4])
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
    attempts = {key: _attempt(key) for key in keys}
    with database.read() as session:
        writing = checkpoints.being_written(session, attempts.values())
        known = checkpoints.known_keys(session, keys)  # second: an attempt that ended in between has its row by now
    return known | {key for key, attempt in attempts.items() if attempt in writing}


def _attempt(folder: str) -> tuple[str, int]:
    _, job_id, epoch, _ = folder.split("/")
    return job_id, int(epoch)


def _orphans(keys: Iterator[str], known: Callable[[list[str]], set[str]]) -> Iterator[str]:
    """Those of `keys` that are not known, asked for in batches."""
    while batch := list(islice(keys, _BATCH)):
        yield from sorted(set(batch) - known(batch))


def _newest(path: Path) -> float:
    """When anything in it was last written; now if it is being deleted."""
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        return max(float(found.lstat().st_mtime) for found in (path, *inside))
    except FileNotFoundError:
        return time.time()
