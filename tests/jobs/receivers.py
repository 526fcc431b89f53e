"""Servers on loopback that answer as a test tells them to, byte for byte."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[["Request", socket.socket], None]


@dataclass(frozen=True)
class Request:
    """What came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A running server; `requests` grows."""

    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def wait(self, count: int, timeout_s: float = 30) -> None:
        """Until so many requests have come."""
        deadline = time.monotonic() + timeout_s
        while len(self.requests) < count:
            assert time.monotonic() < deadline, f"{len(self.requests)} of {count} requests"
            time.sleep(0.01)


def status(code: int, *headers: str) -> bytes:
    """An answer without a body."""
    lines = [f"HTTP/1.1 {code} Whatever", *headers, "Content-Length: 0"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def saying(*answers: bytes) -> Answer:
    """Gives one answer after the other, the last one for ever."""
    remaining = list(answers)
    lock = threading.Lock()

    def answer(request: Request, connection: socket.socket) -> None:
        with lock:
            content = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        connection.sendall(content)

    return answer


@contextmanager
def receiver(answer: Answer, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A server whose every connection is one request and what `answer` does about it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=64)
    listener.settimeout(0.1)
    made, stopped, threads = Receiver(listener.getsockname()[1]), threading.Event(), []

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                secured = tls.wrap_socket(connection, server_side=True) if tls else connection
                with secured:
                    request = _read(secured)
                    if request is not None:
                        made.requests.append(request)
                        answer(request, secured)
            except OSError:
                pass  # the sender had enough

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            made.connections += 1
            thread = threading.Thread(target=serve, args=(connection,))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield made
    finally:
        stopped.set()
        acceptor.join()
        listener.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def _read(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in rest)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return Request(line, headers, body)
