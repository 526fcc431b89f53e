"""A folder as artifact store: an object is written beside its place, flushed to disk and renamed.

So it is there completely or not at all, also after a power cut.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.storage.base import CHUNK, CLOCK, FULL, StorageError, StorageFull, Stored

UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.tmp$")
"""Ends the name of a file that is still being written."""


class LocalStorage:
    """A folder, of this machine or a network mount."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        with self._errors("check"):
            self._root.mkdir(parents=True, exist_ok=True)
            if not os.access(self._root, os.W_OK):
                raise PermissionError(f"cannot write to {self._root}")

    def is_empty(self) -> bool:
        with self._errors("list", may_be_missing=True):
            try:
                return os.listdir(self._root) in ([], [CLOCK])
            except FileNotFoundError:
                return True

    def put(self, source: Path, key: str) -> None:
        path = self._root / key
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        with source.open("rb") as reader, self._errors(f"write {key}"):
            try:
                with self._create(unfinished) as writer:
                    shutil.copyfileobj(reader, writer, CHUNK)
                    writer.flush()
                    os.fsync(writer.fileno())
                os.replace(unfinished, path)
                _sync_folder(path.parent)
            finally:
                unfinished.unlink(missing_ok=True)

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        with self._errors(f"read {key}", may_be_missing=True):
            file = (self._root / key).open("rb")
        with file:
            file.seek(start)
            while start < end:
                with self._errors(f"read {key}", may_be_missing=True):
                    piece = file.read(min(CHUNK, end - start))
                if not piece:
                    return
                start += len(piece)
                yield piece

    def size(self, key: str) -> int:
        with self._errors(f"look at {key}", may_be_missing=True):
            return (self._root / key).stat().st_size

    def remove(self, key: str) -> None:
        path = self._root / key
        with self._errors(f"delete {key}"):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not _remove_empty(folder):
                    return

    def walk(self, prefix: str) -> Iterator[Stored]:
        with self._errors(f"list {prefix}"):
            for folder, _, names in os.walk(self._root / prefix):
                for name in names:
                    path = Path(folder, name)
                    try:
                        found = path.stat()
                    except FileNotFoundError:
                        continue  # deleted or renamed meanwhile
                    yield Stored(path.relative_to(self._root).as_posix(), found.st_size, found.st_mtime)

    def now(self) -> float:
        path = self._root / CLOCK
        with self._errors("read the clock"):
            self._root.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            os.utime(path)
            return path.stat().st_mtime

    def _create(self, path: Path) -> Any:
        for _ in range(10):
            try:
                self._make_folder(path.parent)
                return path.open("xb")
            except (FileNotFoundError, FileExistsError):
                continue  # `remove` has just taken the empty folder away; mkdir says "exists" when that is mid-call
        return path.open("xb")

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)

    @contextmanager
    def _errors(self, what: str, *, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            kind = StorageFull if error.errno in FULL else StorageError
            raise kind(f"the artifact store could not {what}: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # not empty, or gone
        return False
    return True
