"""Every way known to us of turning a URL that users name into a request into our own network, against the one way out.

An overview, a case a row: `tests/egress` has each mechanism in detail. The targets listen, and nothing may reach them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from bgpo.egress import Egress, EgressRefused, check_url
from tests.jobs.receivers import OK, Receiver, receiver, saying, status

pytestmark = pytest.mark.attacks

SPELLINGS = {
    "loopback": "https://127.0.0.1/",
    "loopback, another of its addresses": "https://127.8.8.8/",
    "loopback by name": "https://localhost/",
    "loopback by name with a dot": "https://localhost./",
    "a name without domain": "https://redis/",
    "this host": "https://0.0.0.0/",
    "this host, short": "https://0/",
    "decimal": "https://2130706433/",
    "octal": "https://0177.0.0.1/",
    "octal, whole": "https://017700000001/",
    "hexadecimal": "https://0x7f000001/",
    "hexadecimal parts": "https://0x7f.0x0.0x0.0x1/",
    "two parts": "https://127.1/",
    "three parts": "https://127.0.1/",
    "a part with a leading zero": "https://127.0.0.01/",
    "a trailing dot": "https://127.0.0.1./",
    "percent-encoded": "https://%31%32%37.0.0.1/",
    "full-width digits": "https://１２７.0.0.1/",
    "ideographic full stops": "https://127。0。0。1/",
    "circled letters": "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "private 10/8": "https://10.0.0.1/",
    "private 172.16/12": "https://172.16.0.1/",
    "private 192.168/16": "https://192.168.0.1/",
    "CGNAT 100.64/10": "https://100.64.0.1/",
    "metadata": "https://169.254.169.254/latest/meta-data/",
    "metadata, Alibaba": "https://100.100.100.200/",
    "metadata, Oracle": "https://192.0.0.192/",
    "metadata, decimal": "https://2852039166/",
    "metadata by name, without TLS": "http://metadata.google.internal/",
    "protocol assignments 192.0.0/24": "https://192.0.0.8/",
    "benchmarks 198.18/15": "https://198.18.0.1/",
    "6to4 relays": "https://192.88.99.1/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "IPv6 loopback": "https://[::1]/",
    "IPv6 loopback, long": "https://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "IPv6 unspecified": "https://[::]/",
    "IPv4-mapped": "https://[::ffff:127.0.0.1]/",
    "IPv4-mapped, hexadecimal": "https://[::ffff:7f00:1]/",
    "IPv4-mapped metadata": "https://[::ffff:169.254.169.254]/",
    "IPv4-compatible": "https://[::127.0.0.1]/",
    "NAT64": "https://[64:ff9b::7f00:1]/",
    "NAT64, local": "https://[64:ff9b:1::7f00:1]/",
    "6to4": "https://[2002:7f00:1::]/",
    "Teredo": "https://[2001:0:7f00:1::]/",
    "site-local fec0::/10": "https://[fec0::1]/",
    "link-local": "https://[fe80::1]/",
    "link-local with a zone": "https://[fe80::1%25lo]/",
    "unique local": "https://[fc00::1]/",
    "metadata, IPv6": "https://[fd00:ec2::254]/",
    "IPv6 multicast": "https://[ff02::1]/",
    "user name": "https://example.com@127.0.0.1/",
    "user name and password": "https://example.com:443@127.0.0.1/",
    "an empty user name": "https://@127.0.0.1/",
    "a backslash before the host": "https://example.com\\@127.0.0.1/",
    "a backslash behind the host": "https://127.0.0.1\\.example.com/",
    "a line break": "https://example.com/\r\nHost: 127.0.0.1",
    "a null byte": "https://example.com\x00.127.0.0.1/",
    "port of SSH": "https://example.com:22/",
    "port of Redis": "https://example.com:6379/",
    "port of HTTP": "https://example.com:80/",
    "another port": "https://example.com:8443/",
    "a port beyond 65535": "https://example.com:65979/",
    "http": "http://example.com/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp": "ftp://127.0.0.1/",
    "data": "data:text/plain,hello",
    "a Unix socket": "unix:///run/docker.sock",
    "no scheme": "//127.0.0.1/",
}

INWARD = {
    "loopback": ["127.0.0.1"],
    "metadata": ["169.254.169.254"],
    "private": ["10.0.0.1"],
    "CGNAT": ["100.64.0.1"],
    "assignments": ["192.0.0.8"],
    "IPv6 loopback": ["::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1"],
    "6to4": ["2002:7f00:1::"],
    "site-local": ["fec0::1"],
    "one inward among public ones": ["8.8.8.8", "2606:4700::1111", "127.0.0.1"],
}


@pytest.fixture
def inner() -> Iterator[Receiver]:
    """What must not be reached."""
    with receiver(saying(OK)) as server:
        yield server


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where sockets went."""
    found: list[tuple[str, int]] = []
    real = socket.create_connection

    def watch(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        found.append(address)
        return real(address, timeout)

    monkeypatch.setattr(socket, "create_connection", watch)
    return found


def answers(addresses: Sequence[str]) -> Callable[[str, int], Sequence[str]]:
    return lambda host, port: addresses


@pytest.mark.parametrize("url", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_the_url_alone_is_refused(url: str, connected: list[tuple[str, int]]) -> None:
    """When a definition is made, and again when a request would go out."""
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with pytest.raises(EgressRefused):
        check_url(url)
    with pytest.raises(EgressRefused):
        Egress(resolver=resolver).request("POST", url)
    assert (asked, connected) == ([], [])


@pytest.mark.parametrize("addresses", INWARD.values(), ids=INWARD.keys())
def test_a_name_that_leads_inward(addresses: list[str], connected: list[tuple[str, int]]) -> None:
    with pytest.raises(EgressRefused, match="not public"):
        Egress(resolver=answers(addresses)).request("POST", "https://innocent.example/")
    assert connected == []


def test_rebinding(inner: Receiver, connected: list[tuple[str, int]]) -> None:
    """A name that is harmless when checked and leads to another address a moment later."""
    with receiver(saying(OK), host="127.0.0.2") as other:
        later = [["127.0.0.1"], ["127.0.0.2"]]
        client = Egress(allow_private=True, resolver=lambda host, port: later.pop(0))
        assert client.request("POST", f"http://rebinding.example:{inner.port}/").status == 200
    assert connected == [("127.0.0.1", inner.port)]
    assert (len(later), other.connections) == (1, 0)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects(code: int, inner: Receiver) -> None:
    target = f"http://127.0.0.1:{inner.port}/"
    with receiver(saying(status(code, f"Location: {target}", f"Refresh: 0; url={target}"))) as server:
        assert Egress(allow_private=True).request("POST", f"http://127.0.0.1:{server.port}/").status == code
    assert inner.connections == 0


def test_the_environments_proxy(inner: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inner.port}")
    with receiver(saying(OK)) as server:
        Egress(allow_private=True).request("POST", f"http://127.0.0.1:{server.port}/")
    assert inner.connections == 0


def test_metadata_stays_out_of_reach_even_where_private_addresses_are_allowed(connected: list[tuple[str, int]]) -> None:
    for addresses in (["169.254.169.254"], ["fd00:ec2::254"], ["::ffff:169.254.169.254"], ["fe80::1"]):
        with pytest.raises(EgressRefused, match="not public"):
            Egress(allow_private=True, resolver=answers(addresses)).request("POST", "http://innocent.example/")
    assert connected == []


def test_a_host_that_is_not_on_the_list(connected: list[tuple[str, int]]) -> None:
    for url in ("https://evil.example/", "https://example.com.evil.example/", "https://notexample.com/"):
        with pytest.raises(EgressRefused, match="list of hosts"):
            Egress(hosts=("*.example.com",), resolver=answers(["8.8.8.8"])).request("POST", url)
    assert connected == []
