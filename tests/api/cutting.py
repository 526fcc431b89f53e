"""A proxy that lets requests through and cuts the connection when the answer comes: what the client asked for is done.

It cuts the answer to the first try of each POST and passes everything else on.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST at once


class CuttingProxy:
    """Forwards 127.0.0.1:`port` to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.cuts = 0
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            while request := _message(client):
                server.sendall(request)
                answer = _message(server)
                head = request.partition(b"\r\n\r\n")[0].lower()
                if head.startswith(b"post ") and b"x-stainless-retry-count: 0" in head:
                    with self._lock:
                        self.cuts += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                client.sendall(answer)


def _message(source: socket.socket) -> bytes:
    """One whole HTTP message; empty when the connection is over."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = source.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = (int(sizes[0]) if sizes else 0) - len(body)
    while missing > 0:
        piece = source.recv(65536)
        if not piece:
            return b""
        data, missing = data + piece, missing - len(piece)
    return data


@contextmanager
def cutting_proxy(target: int) -> Iterator[CuttingProxy]:
    """A running proxy."""
    proxy = CuttingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
