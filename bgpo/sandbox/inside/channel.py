"""Messages between a sandbox and the outside: JSON in frames over a Unix stream socket, with file descriptors.

A frame is a length, a number of descriptors, and the JSON; the descriptors travel with its first byte. Reading takes
what has arrived and never waits for the rest of a frame, so that a side which stops in the middle of one holds up
nobody. Runs on both sides; the standard library only.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import threading

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from typing import Any

MAX_FRAME = 64 * 2**20
"""Bytes of one message."""
MAX_FDS = 16
"""Descriptors of one message."""
_HEADER = struct.Struct("!IB")
_CHUNK = 2**18


class ChannelError(Exception):
    """The other side sends what no message is."""


class Channel:
    """One end. `send` may be called by several threads, `receive` by one."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._sending = threading.Lock()
        self._data = bytearray()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """For poll."""
        return self.socket.fileno()

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send a message and copies of descriptors.

        Raises:
            OSError: the other side is gone.
            ValueError: the message is too long, or no JSON.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_FRAME or len(fds) > MAX_FDS:
            raise ValueError(f"a message has at most {MAX_FRAME} bytes and {MAX_FDS} descriptors")
        data = _HEADER.pack(len(data), len(fds)) + data
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with self._sending:
            sent = self.socket.sendmsg([data], rights)
            self.socket.sendall(memoryview(data)[sent:])

    def receive(self) -> list[tuple[Any, list[int]]]:
        """Wait until something arrives, and return the messages that are complete with it: none, one or more.

        Raises:
            EOFError: the other side has closed its end, or is gone.
            ChannelError: it sends nonsense.
        """
        try:
            data, ancillary, _, _ = self.socket.recvmsg(
                _CHUNK, socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError as error:
            raise EOFError from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds += fds
        if not data:
            raise EOFError
        self._data += data
        return self._complete()

    def close(self) -> None:
        """Close this end, and descriptors that nobody took."""
        self.socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _complete(self) -> list[tuple[Any, list[int]]]:
        messages = []
        while len(self._data) >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._data)
            if length > MAX_FRAME or count > MAX_FDS:
                raise ChannelError(f"a message of {length} bytes and {count} descriptors")
            end = _HEADER.size + length
            if len(self._data) < end:
                break
            try:
                message = json.loads(self._data[_HEADER.size : end])
            except (ValueError, RecursionError) as error:
                raise ChannelError("not JSON") from error
            if count > len(self._fds):
                raise ChannelError("descriptors are missing")
            fds, self._fds = self._fds[:count], self._fds[count:]
            del self._data[:end]
            messages.append((message, fds))
        return messages
