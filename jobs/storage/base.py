"""What a store of artifacts must do, and what may go wrong: one interface for folders and object stores."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.errors import Unavailable

CHUNK = 1 << 20
CLOCK = "clock"
"""Key of the object whose modification time is the store's clock; it does not count as content."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(Unavailable):
    """The artifact store could not do it; nothing is known about the object."""

    code = "storage_unavailable"


class StorageFull(StorageError):
    """There is no room: on the artifact store, or on the disk a copy was written to."""

    status = 507
    code = "disk_full"


@dataclass(frozen=True)
class Stored:
    """An object as the store lists it; `modified` is unix seconds on the store's clock."""

    key: str
    bytes: int
    modified: float


class Storage(Protocol):
    """Objects by key. Every method raises StorageError and StorageFull."""

    def check(self) -> None:
        """Raise when the store cannot be used."""

    def is_empty(self) -> bool:
        """Whether it holds nothing at all, or is not there: a folder that is not mounted, a bucket of another name."""

    def put(self, source: Path, key: str) -> None:
        """Store a local file."""

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive), fewer if the object ends; raises FileNotFoundError."""

    def size(self, key: str) -> int:
        """Bytes of an object; raises FileNotFoundError."""

    def remove(self, key: str) -> None:
        """Delete an object; a missing one is fine."""

    def walk(self, prefix: str) -> Iterator[Stored]:
        """All objects below the folder `prefix`, in no order."""

    def now(self) -> float:
        """The store's clock, as unix seconds."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(f"no room to write {path}: {error.strerror}") from error
        raise
