"""Sandboxes that are started ahead: a caller gets one at once, uses it alone, and it is ended afterwards."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Self

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
        self._starting = 0
        self._failure: SandboxError | None = None
        self._closed = False
        self._changed = threading.Condition()
        count = min(size, os.cpu_count() or 1)
        self._threads = [threading.Thread(target=self._fill, name="sandbox-pool", daemon=True) for _ in range(count)]
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
            if closed:  # nobody else would
                sandbox.close()

    def close(self) -> None:
        """End all sandboxes that are not taken; those that are end when they are given back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._used += self._ready
        self._ready.clear()
        while self._used:
            self._used.popleft().close()

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
        """A thread of the pool: start what is missing, end what was used."""
        while (work := self._work()) != "stop":
            if isinstance(work, Sandbox):
                work.close()
            else:
                self._start()

    def _work(self) -> Sandbox | Literal["start", "stop"]:
        """Wait for something to do: a sandbox to end, or one to start."""
        with self._changed:
            while not self._closed:
                if self._used:
                    return self._used.popleft()
                if len(self._ready) + self._starting < self._size and self._failure is None:
                    self._starting += 1
                    return "start"
                self._changed.wait()
        return "stop"

    def _start(self) -> None:
        sandbox, failure = None, None
        try:
            sandbox = Sandbox(self._wall, self._limits, self._modules)
        except SandboxError as error:
            failure = error
        finally:
            with self._changed:
                self._starting -= 1
                if sandbox is not None:
                    self._ready.append(sandbox)
                self._failure = failure or self._failure
                self._changed.notify_all()
