"""A TCP proxy that misbehaves: it cuts connections, and it accepts and passes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST at once


class TcpProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.cuts = 0
        """Connections that were cut."""
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection there is."""
        self._call(self._cut())

    def refuse(self, refusing: bool = True) -> None:
        """Reset what there is and, until told otherwise, every new connection at once."""
        self._refusing = refusing
        self.cut()

    def stall(self) -> None:
        """Pass nothing any more; connections are still accepted."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        """Pass everything again, what was held back first."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def close(self) -> None:
        """End it with all its connections."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        pair = [writer]
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
            pair.append(back_writer)
            self._writers.add(back_writer)
            await asyncio.gather(self._pump(reader, back_writer, pair), self._pump(back_reader, writer, pair))
        except OSError:
            pass  # the other side is down, or the connection was cut
        finally:
            for end in pair:
                self._writers.discard(end)
                end.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: list[asyncio.StreamWriter]
    ) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()
        finally:
            for end in pair:  # one direction is over: so is the connection
                end.transport.abort()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            with contextlib.suppress(OSError):  # it has ended by itself meanwhile
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            self.cuts += 1

    async def _close(self) -> None:
        self._server.close()
        self._flowing.set()
        await self._cut()
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
