"""Attacks over the network and over sockets of this machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgpo.sandbox import Sandbox
from tests.attacks.conftest import assert_stopped, inside


def connect(family: int, address: list[Any] | str) -> str:
    import socket

    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(3)
        connection.connect(address if isinstance(address, str) else tuple(address))
    return "connected"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_of_this_machine_is_out_of_reach(sandbox: Sandbox, family: int, host: str) -> None:
    with socket.create_server((host, 0), family=socket.AddressFamily(family)) as server:
        port = server.getsockname()[1]
        assert connect(family, [host, port]) == "connected"  # from here it works
        assert_stopped(inside(sandbox, connect, family=family, address=[host, port]), PermissionError)


@pytest.mark.parametrize("host", ["169.254.169.254", "1.1.1.1", "10.0.0.1", "192.168.0.1"])
def test_no_address_is_reachable(sandbox: Sandbox, host: str) -> None:
    """Metadata, public and private ones. From inside only: tests connect to loopback alone."""
    assert_stopped(inside(sandbox, connect, family=socket.AF_INET, address=[host, 80]), PermissionError)


def test_names_are_not_resolved(sandbox: Sandbox) -> None:
    def resolve() -> str:
        import socket

        return str(socket.getaddrinfo("example.com", 443))

    assert_stopped(inside(sandbox, resolve), socket.gaierror)


def test_an_abstract_socket_is_out_of_reach(sandbox: Sandbox) -> None:
    name = f"\0bgpo-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert connect(socket.AF_UNIX, name) == "connected"
        assert_stopped(inside(sandbox, connect, family=socket.AF_UNIX, address=name), ConnectionRefusedError)


def test_a_socket_file_in_tmp_is_out_of_reach(sandbox: Sandbox) -> None:
    """As an embedded Redis has."""
    path = f"/tmp/bgpo-{secrets.token_hex(8)}.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            Path(path).chmod(0o777)
            server.listen()
            assert connect(socket.AF_UNIX, path) == "connected"
            assert_stopped(inside(sandbox, connect, family=socket.AF_UNIX, address=path), FileNotFoundError)
        finally:
            Path(path).unlink()


def raw_socket() -> None:
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def packet_socket() -> None:
    import socket

    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def datagram_socket() -> None:
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53))


def netlink_socket() -> None:
    import socket

    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)


def machine_socket() -> None:
    import socket

    socket.socket(40, socket.SOCK_STREAM)  # AF_VSOCK: the host of a virtual machine


def kernel_crypto_socket() -> None:
    import socket

    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)


@pytest.mark.parametrize(
    "attack",
    [raw_socket, packet_socket, datagram_socket, netlink_socket, machine_socket, kernel_crypto_socket],
    ids=lambda each: each.__name__,
)
def test_only_unix_sockets_can_be_made(sandbox: Sandbox, attack: Callable[[], None]) -> None:
    assert_stopped(inside(sandbox, attack), PermissionError)


def test_processes_of_a_task_can_talk_to_each_other(sandbox: Sandbox) -> None:
    """What the filter leaves does work, so that the failures above are its doing."""

    def talk() -> str:
        import socket

        one, other = socket.socketpair()
        one.sendall(b"hello")
        return other.recv(5).decode()

    assert inside(sandbox, talk).value == "hello"


def test_a_task_holds_no_socket_of_the_runner(sandbox: Sandbox) -> None:
    def held() -> list[str]:
        import os

        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
            except FileNotFoundError:  # that of the listing
                continue
        return found

    found = inside(sandbox, held).value
    assert found
    assert not [each for each in found if "socket" in each or "eventfd" in each]
    assert len(found) <= 5  # three streams, the reply, and the listing
