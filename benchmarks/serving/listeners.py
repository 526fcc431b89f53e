"""Listeners of event streams, cheap enough for a thousand in one process, and what each of them has heard.

A listener is an asyncio protocol on a plain socket. It takes a stream apart as it comes (HTTP chunks, then messages),
and keeps the id and the data of each message, equal data once for all listeners. `cut` breaks its connection in the
middle, at whatever byte that is, and goes on from the last whole message with Last-Event-ID or `?after=`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from benchmarks.job_plane.load import get
from cli.ports import LOOPBACK

DONE = "[DONE]"
_END_OF_HEAD = b"\r\n\r\n"


class Reader:
    """Takes the bytes of one streamed response apart. Raises RuntimeError when it is not a 200."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._text = bytearray()
        self.begun = False
        self.ended = False
        """The last chunk is there."""
        self.comments = 0

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Id and data of the messages that these bytes complete."""
        self._raw += data
        if not self.begun:
            end = self._raw.find(_END_OF_HEAD)
            if end < 0:
                return []
            if not self._raw.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"not a 200: {bytes(self._raw[:500])!r}")
            self.begun = True
            del self._raw[: end + len(_END_OF_HEAD)]
        self._join()
        *blocks, rest = self._text.split(b"\n\n")
        self._text = bytearray(rest)
        return [message for block in blocks if (message := self._message(block.decode())) is not None]

    def _join(self) -> None:
        """Move whole chunks from the raw bytes to the text."""
        place = 0
        while (end := self._raw.find(b"\r\n", place)) >= 0:
            size = int(self._raw[place:end], 16)
            if len(self._raw) < end + 2 + size + 2:
                break
            self.ended = size == 0
            self._text += self._raw[end + 2 : end + 2 + size]
            place = end + 2 + size + 2
        del self._raw[:place]

    def _message(self, block: str) -> tuple[str, str] | None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        if "data" not in fields:
            self.comments += 1
            return None
        return fields.get("id", ""), fields["data"]


@dataclass(frozen=True)
class Heard:
    """One message."""

    id: str
    data: str
    at: float
    """Unix seconds."""


class Listener(asyncio.Protocol):
    """Hears one stream to its end, over as many connections as it takes."""

    def __init__(self, port: int, path: str, kept: dict[str, str], *, by_header: bool) -> None:
        """`kept`: equal texts, shared by all listeners. `by_header`: reconnect with Last-Event-ID, not `?after=`."""
        self._port, self._path, self._kept, self._by_header = port, path, kept, by_header
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The connection is closed."""
        self._reader = Reader()
        self.heard: list[Heard] = []
        self.connections = 0
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The first answer has begun."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """[DONE] has come, or it broke."""

    async def connect(self) -> None:
        """Begin, or go on."""
        last = self.heard[-1].id if self.heard else None
        path, headers = self._path, []
        if last is not None and self._by_header:
            headers.append(f"last-event-id: {last}")
        elif last is not None:
            path += f"?after={last}"
        self._reader = Reader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, LOOPBACK, self._port)
        self.connections += 1
        transport.write(get(path, *headers))

    async def cut(self) -> None:
        """Break the connection and make another one."""
        if not self.over.done() and self._transport is not None:
            await self.close()
            await self.connect()

    def data_received(self, data: bytes) -> None:
        now = time.time()
        reader = self._reader
        try:
            messages = reader.feed(data)
        except RuntimeError as error:
            self._fail(error)
            return
        if reader.begun and not self.begun.done():
            self.begun.set_result(None)
        for id_, text in messages:
            if text == DONE:
                if not self.over.done():
                    self.over.set_result(None)
                return
            self.heard.append(Heard(self._kept.setdefault(id_, id_), self._kept.setdefault(text, text), now))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set_result(None)
        if self._transport is not None:  # not by `close`
            self._transport = None
            self._fail(RuntimeError(f"{self._path} broke before its end: {exc}"))

    async def close(self) -> None:
        """Leave."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            await self._lost

    def _fail(self, error: RuntimeError) -> None:
        for future in (self.begun, self.over):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits gets it; nobody may


@dataclass
class Verdict:
    """What was wrong with what listeners heard, against what is stored."""

    lost: int = 0
    duplicated: int = 0
    disordered: int = 0
    """Listeners who heard the right messages in another order."""
    different: int = 0
    """Messages that say something else than what is stored."""

    def add(self, heard: Sequence[Heard], stored: Mapping[str, Any]) -> None:
        """Count what one listener heard against the stored messages (their JSON, parsed), by id and in their order."""
        counts = Counter(message.id for message in heard)
        lost = len(stored.keys() - counts.keys())
        duplicated = sum(count - 1 for count in counts.values())
        self.lost += lost
        self.duplicated += duplicated
        self.different += sum(stored.get(message.id) != _parsed(message.data) for message in heard)
        if not lost and not duplicated and [message.id for message in heard] != list(stored):
            self.disordered += 1

    @property
    def exact(self) -> bool:
        """Nothing was."""
        return not (self.lost or self.duplicated or self.disordered or self.different)


@lru_cache(maxsize=100_000)
def _parsed(text: str) -> Any:
    return json.loads(text)
