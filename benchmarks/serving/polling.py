"""Polls at a fixed rate, whatever the answers take: a poll's time counts from when it was due.

So a server that stands still for a while is charged for all polls that were due meanwhile, and not for one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import cast

from benchmarks.job_plane.load import get
from cli.ports import LOOPBACK

_LENGTH = b"content-length: "


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one poll under way."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._due = 0.0
        self._answer = b""
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, due: float, request: bytes) -> None:
        assert self._transport is not None
        self._due, self._answer = due, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return
        place = self._answer.index(_LENGTH) + len(_LENGTH)
        length = int(self._answer[place : self._answer.index(b"\r\n", place)])
        if len(self._answer) == end + 4 + length:
            self._poller.answered(self, self._due, ok=self._answer.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self._poller.failed += not self._poller.closed

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self._lost.wait()


class Poller:
    """Polls a path `rate` times a second until it is closed."""

    def __init__(self, port: int, path: str, rate: float, connections: int) -> None:
        self._port, self._request, self._rate = port, get(path), rate
        self._all = [_Connection(self) for _ in range(connections)]
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._task: asyncio.Task[None] | None = None
        self.polls: list[tuple[float, float]] = []
        """When each was due, of the monotonic clock, and seconds to its answer."""
        self.failed = 0
        self.closed = False

    async def start(self) -> None:
        """Connect and begin."""
        loop = asyncio.get_running_loop()
        for connection in self._all:
            await loop.create_connection(lambda one=connection: one, LOOPBACK, self._port)  # type: ignore[misc]
        self._idle.extend(self._all)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop polling; polls under way are left alone."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for connection in self._all:
            await connection.close()

    def answered(self, connection: _Connection, due: float, *, ok: bool) -> None:
        """A poll has its answer."""
        self.polls.append((due, time.monotonic() - due))
        self.failed += not ok
        if self._waiting:
            connection.send(self._waiting.popleft(), self._request)
        else:
            self._idle.append(connection)

    def between(self, begin: float, end: float) -> list[float]:
        """Seconds of the polls due between two times."""
        return [took for due, took in self.polls if begin <= due < end]

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            while due <= time.monotonic():
                if self._idle:
                    self._idle.popleft().send(due, self._request)
                else:
                    self._waiting.append(due)
                due += 1 / self._rate
            await asyncio.sleep(max(due - time.monotonic(), 0))
