"""The lock that keeps a home folder to one process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cli.errors import CliError


class Home:
    """One folder; a context manager that holds it for this process, until it leaves or dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.lock_file = self.path / "lock"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Create the folder and take its lock.

        Raises:
            CliError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.lock_file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise CliError(f"{self.path} is in use by process {owner}: stop it or choose another --home") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()  # closing releases the lock; the file stays, removing it would race with the next owner
            self._lock = None
