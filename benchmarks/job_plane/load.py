"""A load generator that costs less than what it loads: raw sockets, one thread, the same request over and over.

An HTTP client library costs more per request than a bare route does, and would be what is measured. This one costs
some tens of microseconds: it sends prepared bytes on keep-alive connections, and of an answer reads the status and the
length. Its share of a core is part of the result; near 1 it would be the bottleneck.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

_LENGTH = b"content-length: "


@dataclass
class Load:
    """What a server answered under load."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    """One a request."""
    client_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies_s) / self.seconds

    @property
    def client_share(self) -> float:
        """Of one core, what the load generator took."""
        return self.client_cpu_s / self.seconds


class _Connection:
    """One keep-alive connection with one request under way."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._sent_at = 0.0
        self._answer = b""

    def send(self) -> None:
        self._answer = b""
        self._sent_at = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> float | None:
        """Seconds the answer took once it is complete. Raises RuntimeError when it is not a 200."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise RuntimeError("the server closed the connection")
        self._answer += chunk
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        if not self._answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not a 200: {self._answer[:500]!r}")
        place = self._answer.index(_LENGTH) + len(_LENGTH)
        length = int(self._answer[place : self._answer.index(b"\r\n", place)])
        return time.perf_counter() - self._sent_at if len(self._answer) == end + 4 + length else None


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that a process has used, in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def get(path: str, *headers: str, key: str = "key") -> bytes:
    """A GET request as it goes over the wire."""
    lines = [f"GET {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {key}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def drive(port: int, request: bytes, *, connections: int, seconds: float) -> Load:
    """Keep `connections` requests under way for `seconds`, or until one was answered."""
    load = Load()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        opened = [_Connection(port, request) for _ in range(connections)]
        for connection in opened:
            stack.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        cpu, begin = time.process_time(), time.perf_counter()
        for connection in opened:
            connection.send()
        while (now := time.perf_counter()) < begin + seconds or not load.latencies_s:
            for key, _ in selector.select(timeout=1):
                took = key.data.receive()
                if took is not None:
                    load.latencies_s.append(took)
                    key.data.send()
        load.seconds, load.client_cpu_s = now - begin, time.process_time() - cpu
    return load
