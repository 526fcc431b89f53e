"""Checkpoints on this machine's disk, fetched from the artifact store and verified; the least recently used ones go.

Each generator has a folder of its own, taken by a lock and found again after a restart. A checkpoint is kept under the
hash of its manifest, without the trainer's state, and appears there only when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO

import structlog

from jobs.artifacts import ArtifactStore, Manifest, ManifestFile, model_files
from jobs.tables import Checkpoint

_UNFINISHED = ".part"
_log = structlog.get_logger(__name__)


class CheckpointCache:
    """For one process. Close it to let another one have the folder."""

    def __init__(self, store: ArtifactStore, root: Path, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._folder, self._lock = _take_folder(root)
        for unfinished in self._folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def fetch(self, checkpoint: Checkpoint) -> Path:
        """The folder of a checkpoint's files.

        Raises:
            ArtifactError: a file is missing or altered in the store.
            StorageError: the store cannot be used, or there is no room on this disk.
        """
        files = model_files(Manifest.from_json(checkpoint.manifest))
        target = self._folder / checkpoint.manifest_sha256
        if not _is_whole(target, files):
            shutil.rmtree(target, ignore_errors=True)
            self._make_room(sum(file.bytes for file in files))
            self._fetch(checkpoint.key, files, target)
        os.utime(target)
        return target

    def close(self) -> None:
        """Release the folder; the files stay."""
        self._lock.close()

    def _fetch(self, key: str, files: Sequence[ManifestFile], target: Path) -> None:
        unfinished = target.with_name(target.name + _UNFINISHED)
        try:
            for file in files:
                self._store.fetch_file(
                    f"{key}/{file.path}", unfinished / file.path, bytes=file.bytes, sha256=file.sha256
                )
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _make_room(self, wanted: int) -> None:
        kept = sorted((path for path in self._folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in kept}
        for oldest in kept:
            if sum(sizes.values()) + wanted <= self._max_bytes:
                return
            _log.info("checkpoint dropped from the cache", folder=oldest.name, bytes=sizes.pop(oldest))
            shutil.rmtree(oldest, ignore_errors=True)


def _take_folder(root: Path) -> tuple[Path, IO[str]]:
    for number in count():
        folder = root / str(number)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another generator of this machine
            lock.close()
            continue
        return folder, lock
    raise AssertionError("unreachable")


def _is_whole(folder: Path, files: Sequence[ManifestFile]) -> bool:
    """Whether all is there. The hashes were compared when it was fetched."""
    try:
        return all((folder / file.path).stat().st_size == file.bytes for file in files)
    except OSError:
        return False
