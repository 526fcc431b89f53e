"""Sandboxes that are started ahead: a caller gets one at once, uses it alone, and it is ended afterwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from bgpo.errors import SandboxError
from bgpo.sandbox.launch import Wall
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.sandbox import Sandbox

STARTERS = 2
"""Sandboxes that are started at a time: half of a start is waiting for the kernel."""


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
        self._starting = 0
        self._threads = [threading.Thread(target=self._fill, name="sandbox-pool", daemon=True) for _ in range(STARTERS)]
        for thread in self._threads:
            thread.start()

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
                closed = self._closed
                if not closed:
                    self._used.append(sandbox)
                    self._changed.notify_all()
            if closed:
                sandbox.close()

    def close(self) -> None:
        """End all sandboxes; one that is taken, when its caller is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

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
        """A thread of the pool."""
        while (work := self._next_work()) is not None:
            work()

    def _next_work(self) -> Callable[[], None] | None:
        """Wait for something to do: end what was used, start what is missing. None when the pool is closed."""
        with self._changed:
            while True:
                if self._used:
                    return self._used.popleft().close
                if self._closed:
                    return self._ready.popleft().close if self._ready else None
                if self._failure is None and len(self._ready) + self._starting < self._size:
                    self._starting += 1
                    return self._start
                self._changed.wait()

    def _start(self) -> None:
        sandbox = failure = None
        try:
            sandbox = Sandbox(self._wall, self._limits, self._modules)
        except SandboxError as error:
            failure = error
        with self._changed:
            self._starting -= 1
            self._failure = failure or self._failure
            if sandbox is not None:
                self._ready.append(sandbox)
            self._changed.notify_all()
