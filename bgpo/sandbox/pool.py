"""Sandboxes that are started ahead: a caller gets one at once, uses it alone, and it is ended afterwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from bgpo.errors import SandboxError
from bgpo.sandbox.launch import Wall
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.sandbox import Sandbox


class Pool:
    """Keeps `size` unused sandboxes ready. A context manager; safe to share between threads."""

    def __init__(self, wall: Wall, limits: Limits, size: int, modules: Sequence[str] = ()) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._wall, self._limits, self._size, self._modules = wall, limits, size, modules
        self._ready: deque[Sandbox] = deque()
        self._used: deque[Sandbox] = deque()
        self._failure: SandboxError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name="sandbox-pool", daemon=True)
        self._thread.start()

    @contextmanager
    def take(self) -> Iterator[Sandbox]:
        """A sandbox that nobody has used, for this caller alone.

        Raises:
            SandboxError: none could be started, or the pool is closed.
        """
        sandbox = self._next()
        try:
            yield sandbox
        finally:
            with self._changed:
                self._used.append(sandbox)
                self._changed.notify_all()

    def close(self) -> None:
        """End all sandboxes; those taken end too."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> Sandbox:
        with self._changed:
            while True:
                while self._ready:
                    sandbox = self._ready.popleft()
                    self._changed.notify_all()
                    if sandbox.alive:
                        return sandbox
                    self._used.append(sandbox)
                if self._closed:
                    raise SandboxError("the pool of sandboxes is closed")
                if self._failure is not None:
                    failure, self._failure = self._failure, None  # the next caller has it tried again
                    self._changed.notify_all()
                    raise SandboxError(failure.message)
                self._changed.wait()

    def _fill(self) -> None:
        """The pool's thread: start what is missing, end what was used."""
        while not self._closed:
            self._end_used()
            with self._changed:
                if self._used or self._closed:
                    continue
                if len(self._ready) >= self._size or self._failure is not None:
                    self._changed.wait()
                    continue
            try:
                sandbox = Sandbox(self._wall, self._limits, self._modules)
            except SandboxError as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                continue
            with self._changed:
                self._ready.append(sandbox)
                self._changed.notify_all()
        with self._changed:
            self._used += self._ready
            self._ready.clear()
            self._changed.notify_all()
        self._end_used()

    def _end_used(self) -> None:
        while self._used:
            self._used.popleft().close()
