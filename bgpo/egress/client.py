"""Sends HTTP requests to URLs that users name, which must not become requests into our own network.

A name is resolved once, every address it has must be a public one, and the connection goes to an address that was
checked: the network backend is given addresses and never sees a name, so an answer that changes between check and use
(DNS rebinding) changes nothing. TLS still proves the name. Redirects are not followed, proxies and other settings of
the environment are not read, and time and size have limits that no receiver can stretch.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpcore2

from bgpo import __version__
from bgpo.egress.destinations import PORTS, Address, Target, check_address, literal, parse
from bgpo.errors import BgpoError

Resolver = Callable[[str, int], Sequence[str]]
"""Host name and port to addresses; raises OSError."""

# Its debug lines show the headers of answers, where a receiver can echo the secrets it was sent.
logging.getLogger("httpcore2").setLevel(logging.INFO)

_WRITE = 1 << 14
"""Bytes handed to the socket at once."""
_T = TypeVar("_T")


class EgressFailed(BgpoError):
    """No answer came; the message can be shown to the author of the URL."""

    code = "egress_failed"


@dataclass(frozen=True)
class Limits:
    """What a receiver may cost."""

    connect_s: float = 5
    read_s: float = 10
    """Longest silence."""
    total_s: float = 30
    """From resolving the name to the last byte."""
    max_bytes: int = 1 << 20
    """Of the answer's body; what follows is not read."""


@dataclass(frozen=True)
class Reply:
    """An answer; `body` is as it came, without any Content-Encoding undone."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    cut: bool
    """The body is not whole: it was longer, slower or more broken than allowed."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Egress:
    """Sends requests out. Keeps no connections and no state, so threads may share it.

    Args:
        allow_private: also http, any port, and addresses of loopback and private networks.
        ports: what a URL may have; None = any.
        hosts: host names and addresses that a URL may have, `*.example.com` for all subdomains; None = any.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        ports: Collection[int] | None = PORTS,
        hosts: Collection[str] | None = None,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private, self._ports, self._hosts, self._resolver = allow_private, ports, hosts, resolver
        self._tls = tls or httpcore2.default_ssl_context()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        limits: Limits | None = None,
    ) -> Reply:
        """Send one request and read the answer, whatever its status; redirects are answers.

        Raises:
            EgressRefused: the URL, or an address of its host, is not allowed.
            EgressFailed: no answer came in time, or none that is HTTP.
        """
        limits = limits or Limits()
        deadline = time.monotonic() + limits.total_s
        target = parse(url, self._allow_private, self._ports, self._hosts)
        backend = _Pinned(self._addresses(target, deadline), limits, deadline)
        origin = httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port)
        outgoing = {
            b"host": target.host_header,
            b"user-agent": f"bgpo/{__version__}".encode(),
            b"accept-encoding": b"identity",
            b"connection": b"close",
        } | {name.lower().encode(): value.encode() for name, value in (headers or {}).items()}
        location = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=target.path)
        try:
            with (
                httpcore2.HTTPConnection(origin, ssl_context=self._tls, network_backend=backend) as connection,
                connection.stream(method, location, headers=list(outgoing.items()), content=content) as response,
            ):
                received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                return Reply(response.status, received, *_read(response.iter_stream(), limits.max_bytes))
        except httpcore2.TimeoutException as error:
            raise EgressFailed("it took too long") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise EgressFailed(_why(error)) from error

    def _addresses(self, target: Target, deadline: float) -> list[Address]:
        address = literal(target.host)
        found = self._resolved(target, deadline) if address is None else [address]
        return [check_address(address, self._allow_private) for address in found]

    def _resolved(self, target: Target, deadline: float) -> list[Address]:
        def ask() -> list[Address]:
            return [ipaddress.ip_address(text) for text in self._resolver(target.host, target.port)]

        try:
            found = _within(ask, deadline - time.monotonic())
        except TimeoutError as error:
            raise EgressFailed("its name could not be resolved in time") from error
        except OSError as error:
            raise EgressFailed("its name could not be resolved") from error
        if not found:
            raise EgressFailed("its name has no address")
        return found


class _Pinned(httpcore2.NetworkBackend):
    """Connects to the first of some checked addresses that answers; the name it is asked for does not matter."""

    def __init__(self, addresses: Sequence[Address], limits: Limits, deadline: float) -> None:
        self._addresses, self._limits, self._deadline = addresses, limits, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        until = min(self._deadline, time.monotonic() + self._limits.connect_s)
        problem: OSError | None = None
        for address in self._addresses:
            try:
                connection = socket.create_connection((str(address), port), _left(until))
            except OSError as error:
                problem = error
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Stream(connection, self._limits, self._deadline)
        if isinstance(problem, TimeoutError):
            raise httpcore2.ConnectTimeout from problem
        raise httpcore2.ConnectError from problem


class _Stream(httpcore2.NetworkStream):
    """A socket whose every wait ends at the deadline; a timeout for each read would start anew with each byte."""

    def __init__(self, connection: socket.socket, limits: Limits, deadline: float) -> None:
        self._socket, self._limits, self._deadline = connection, limits, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._socket.settimeout(min(self._limits.read_s, _left(self._deadline)))
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout from error
        except OSError as error:
            raise httpcore2.ReadError from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        try:
            while view:
                self._socket.settimeout(min(self._limits.read_s, _left(self._deadline)))
                view = view[self._socket.send(view[:_WRITE]) :]
        except TimeoutError as error:
            raise httpcore2.WriteTimeout from error
        except OSError as error:
            raise httpcore2.WriteError from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        try:
            self._socket.settimeout(min(self._limits.connect_s, _left(self._deadline)))
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except TimeoutError as error:
            self.close()
            raise httpcore2.ConnectTimeout from error
        except OSError as error:
            self.close()
            raise httpcore2.ConnectError from error
        return _Stream(secured, self._limits, self._deadline)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        return None


def _within(ask: Callable[[], _T], timeout_s: float) -> _T:
    """The result of a call that may hang, such as the resolver's. Raises TimeoutError; the thread ends when it ends."""
    answers: queue.SimpleQueue[tuple[_T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # thread boundary: raised again below
            answers.put((None, error))

    threading.Thread(target=run, name="resolve", daemon=True).start()
    try:
        result, error = answers.get(timeout=max(timeout_s, 0))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read(chunks: Iterable[bytes], max_bytes: int) -> tuple[bytes, bool]:
    """The body, and whether it was cut: the status has come, so what goes wrong now is for the caller to judge."""
    body = bytearray()
    try:
        for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                return bytes(body[:max_bytes]), True
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        return bytes(body), True
    return bytes(body), False


def _why(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return "it does not speak TLS as it should"
    if isinstance(cause, ConnectionRefusedError):
        return "it refused the connection"
    if isinstance(error, httpcore2.ProtocolError):
        return "it did not answer with HTTP"
    return "the connection failed"
