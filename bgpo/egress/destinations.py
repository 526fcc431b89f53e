"""Where requests to URLs that users name may go: what their text must be, and which addresses are public.

Judging the text alone (`check_url`) tells an author early what is wrong; `bgpo.egress.client` judges the addresses as
well, each time it connects.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

import httpx2

from bgpo.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PORTS = (443,)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_NOT_IN_NAMES = re.compile(r"[\s/?#@:\\\[\]]")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")

_REFUSED = [
    ipaddress.ip_network(text)
    for text in (
        # `is_global` of some Python versions lets these pass; each can lead back inside.
        "100.64.0.0/10",  # carriers' shared addresses
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "3fff::/20",  # documentation
    )
]
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
"""All public IPv6; outside are NAT64 (64:ff9b::/96), site-local (fec0::/10), IPv4-compatible (::/96) and the like."""
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
]
_METADATA = ipaddress.ip_address("fd00:ec2::254")
"""A cloud's metadata service inside fc00::/7; the others are link-local, which is never allowed."""


class EgressRefused(InvalidInput):
    """The URL leads where requests may not go; the message can be shown to its author."""

    code = "invalid_url"


@dataclass(frozen=True)
class Target:
    """A URL, taken apart once."""

    scheme: str
    host: str
    port: int
    host_header: bytes
    path: bytes


def check_url(
    url: str,
    *,
    allow_private: bool = False,
    ports: Collection[int] | None = PORTS,
    hosts: Collection[str] | None = None,
) -> None:
    """Refuse a URL that no request may go to, as far as its text tells: nothing is resolved.

    Args:
        allow_private, ports, hosts: as for `Egress`.

    Raises:
        EgressRefused: saying what is wrong with it.
    """
    target = parse(url, allow_private, ports, hosts)
    address = literal(target.host)
    if address is not None:
        check_address(address, allow_private)


def parse(url: str, allow_private: bool, ports: Collection[int] | None, hosts: Collection[str] | None) -> Target:
    """Take a URL apart. Raises EgressRefused."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise EgressRefused("is not a URL") from error
    schemes = {"https": 443, "http": 80} if allow_private else {"https": 443}
    if parsed.scheme not in schemes:
        raise EgressRefused(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if "@" in authority or "\\" in authority:
        raise EgressRefused("must not contain a user name or password")
    host = parsed.raw_host.decode("ascii")
    _check_host(host, allow_private)
    if hosts is not None and not any(_matches(host, pattern) for pattern in map(host_pattern, hosts)):
        raise EgressRefused("has a host that is not on this service's list of hosts")
    port = parsed.port if parsed.port is not None else schemes[parsed.scheme]
    listed = ports is None or allow_private or port in ports
    if not 0 < port < 1 << 16 or not listed:
        raise EgressRefused(f"must have port {' or '.join(map(str, sorted(ports or PORTS)))}")
    return Target(parsed.scheme, host, port, parsed.netloc, parsed.raw_path)


def host_pattern(text: str) -> str:
    """An entry of a list of hosts as it is compared: lower case, other scripts in their ASCII form.

    Raises:
        ValueError: it is neither a name nor an address, nor `*.` and a name.
    """
    prefix, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    address = literal(name)
    if address is not None and not prefix:
        return str(address)
    try:
        if _NOT_IN_NAMES.search(name):
            raise ValueError
        host = httpx2.URL(f"https://{name}").raw_host.decode("ascii")
        _check_host(host, allow_private=not prefix)
        if literal(host) is not None:
            raise ValueError
    except (httpx2.InvalidURL, ValueError):
        raise ValueError(f"{text!r} is no host: give example.com, *.example.com or an address") from None
    return prefix + host


def _matches(host: str, pattern: str) -> bool:
    address = literal(host)
    if address is not None:
        return str(address) == pattern
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _check_host(host: str, allow_private: bool) -> None:
    if ":" in host:
        if literal(host) is None:
            raise EgressRefused("has a host that is no IPv6 address")
        return
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        if literal(host) is None:  # resolvers read 127.1, 0x7f000001 and 2130706433 as addresses
            raise EgressRefused("has a host that is no IPv4 address of four decimal numbers")
        return
    if _NAME.fullmatch(host if "." in host or not allow_private else f"{host}.x") is None:
        raise EgressRefused("must have a host with a full domain name")


def literal(host: str) -> Address | None:
    """The address that a host is, if it is no name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_address(address: Address, allow_private: bool) -> Address:
    """The address to connect to. The message names no address: our own network's names are not the author's business.

    Raises:
        EgressRefused: it is not public.
    """
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped else address
    scoped = isinstance(plain, ipaddress.IPv6Address) and plain.scope_id is not None
    public = plain.is_global and not plain.is_multicast and not any(plain in network for network in _REFUSED)
    if isinstance(plain, ipaddress.IPv6Address) and plain not in _GLOBAL_V6:
        public = False
    private = allow_private and plain != _METADATA and any(plain in network for network in _PRIVATE)
    if scoped or not (public or private):
        raise EgressRefused("leads to an address that is not public")
    return plain
