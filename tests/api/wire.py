"""Speaks HTTP/1.1 by hand, for what no client library would send."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any
from urllib.parse import urlsplit

READ_S = 20


class Wire:
    """One connection."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port or 80), timeout=READ_S)
        self._file = self._socket.makefile("rb")
        self.host = where.netloc

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are; a server that has hung up already is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def head(self, line: str, *headers: str) -> None:
        """Send a request's head."""
        self.send("\r\n".join([line, f"host: {self.host}", *headers, "", ""]).encode("latin-1"))

    def half_close(self) -> None:
        """Say that nothing follows."""
        self._socket.shutdown(socket.SHUT_WR)

    def status(self) -> int:
        """The status of the next response, of which nothing more is read."""
        return int(self._file.readline().split()[1])

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """The next response: status, headers, body as JSON. An interim one (100) has no body."""
        status = self.status()
        headers: dict[str, str] = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        body = self._file.read(length)
        return status, headers, json.loads(body) if body else None

    def closed(self) -> bool:
        """Whether the server closes the connection without a word."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True
