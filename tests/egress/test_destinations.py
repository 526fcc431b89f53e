"""Which URLs and addresses requests may go to: every spelling of an inner address that came to mind must be refused."""

from __future__ import annotations

import ipaddress

import pytest

from bgpo.egress.destinations import EgressRefused, check_address, check_url, host_pattern

INNER = [
    # IPv4: this network, private, carriers, loopback, link-local (metadata), assignments, documentation, benchmarks,
    # 6to4 relays, multicast, reserved, broadcast.
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    # IPv6: unspecified, loopback, IPv4-compatible, mapped, NAT64 (both), discard, Teredo, ORCHID, documentation (both),
    # 6to4, segment routing, unique local, metadata, link-local, site-local, multicast.
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111"]
PRIVATE = ["127.0.0.1", "10.1.2.3", "172.20.0.1", "192.168.0.1", "::1", "fd12::1", "::ffff:127.0.0.1"]
NEVER = [
    "0.0.0.0",  # noqa: S104 - as above
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fd00:ec2::254",
    "fe80::1",
    "224.0.0.1",
    "ff02::1",
    "::",
]


@pytest.mark.parametrize("text", INNER)
def test_an_inner_address_is_refused(text: str) -> None:
    with pytest.raises(EgressRefused, match="not public"):
        check_address(ipaddress.ip_address(text), False)


@pytest.mark.parametrize("text", [text for text in INNER if "%" not in text])
def test_an_inner_address_in_a_url_is_refused(text: str) -> None:
    with pytest.raises(EgressRefused, match="not public"):
        check_url(f"https://[{text}]/hook" if ":" in text else f"https://{text}/hook")


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_accepted(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert check_address(address, False) == address
    check_url(f"https://[{text}]/hook" if ":" in text else f"https://{text}/hook")


def test_a_mapped_public_address_is_used_as_what_it_is() -> None:
    assert check_address(ipaddress.ip_address("::ffff:8.8.8.8"), False) == ipaddress.ip_address("8.8.8.8")


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_can_be_allowed(text: str) -> None:
    check_address(ipaddress.ip_address(text), True)


@pytest.mark.parametrize("text", NEVER)
def test_metadata_services_cannot_be_allowed(text: str) -> None:
    with pytest.raises(EgressRefused, match="not public"):
        check_address(ipaddress.ip_address(text), True)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with https://"),
        ("example.com/hook", "must begin with https://"),
        ("//example.com/hook", "must begin with https://"),
        ("http://example.com/hook", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("gopher://example.com/", "must begin with https://"),
        ("unix:///run/docker.sock", "must begin with https://"),
        ("https:example.com", "full domain name"),
        ("https:///hook", "full domain name"),
        ("https://localhost/hook", "full domain name"),
        ("https://redis/hook", "full domain name"),
        ("https://example.com./hook", "full domain name"),
        ("https://localhost./hook", "full domain name"),
        ("https://127.0.0.1./hook", "full domain name"),
        ("https://.example.com/", "full domain name"),
        ("https://a..example.com/", "full domain name"),
        ("https://exa%6dple.com/", "full domain name"),
        ("https://example.com%00.evil.example/", "full domain name"),
        ("https://exam ple.com/", "full domain name"),
        ("https://*.example.com/", "full domain name"),
        (f"https://{'a' * 64}.com/", "full domain name"),
        (f"https://{'a.' * 127}com/", "full domain name"),
        # Other spellings of 127.0.0.1 that resolvers understand.
        ("https://2130706433/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://0x7f.0.0.1/", "four decimal numbers"),
        ("https://0x7f.1/", "four decimal numbers"),
        ("https://127.1/", "four decimal numbers"),
        ("https://127.0.1/", "four decimal numbers"),
        ("https://0177.0.0.1/", "not a URL|four decimal numbers"),
        ("https://017700000001/", "four decimal numbers"),
        ("https://127.0.0.0x1/", "four decimal numbers"),
        ("https://127.0.0.01/", "not a URL|four decimal numbers"),
        ("https://256.256.256.256/", "not a URL|four decimal numbers"),
        ("https://0/", "four decimal numbers"),
        ("https://0x/", "four decimal numbers"),
        ("https://[::1/", "not a URL"),
        ("https://[::1]x/", "not a URL"),
        ("https://[fe80::1%25eth0]/", "IPv6|not public"),
        ("https://[::g]/", "not a URL|IPv6"),
        ("https://::1/", "not a URL|IPv6"),
        ("https://１２７.0.0.1/", "not a URL"),
        ("https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "not a URL"),
        ("https://127。0。0。1/", "not a URL|four decimal|full domain|not public"),
        ("https://exa\u00admple.com/", "not a URL"),
        ("https://user@example.com/", "user name"),
        ("https://user:password@example.com/", "user name"),
        ("https://:@example.com/", "user name"),
        ("https://@example.com/", "user name"),
        ("https://example.com\\@127.0.0.1/", "user name"),
        ("https://127.0.0.1\\.example.com/", "user name"),
        ("https://example.com:443@127.0.0.1/", "user name"),
        ("https://example.com:80/", "port 443"),
        ("https://example.com:8443/", "port 443"),
        ("https://example.com:0/", "port 443"),
        ("https://example.com:22/", "port 443"),
        ("https://example.com:65979/", "port 443"),  # 443 modulo 65536
        ("https://example.com:-443/", "not a URL|port 443"),
        ("https://example.com:443:80/", "not a URL"),
        ("https://example.com/\r\nX-Injected: 1", "not a URL"),
        ("https://example.com/\x00", "not a URL"),
        ("https://exa\tmple.com/", "not a URL"),
    ],
)
def test_a_url_that_is_no_place_to_go_is_refused(url: str, problem: str) -> None:
    with pytest.raises(EgressRefused, match=problem):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hooks/1?token=a%20b#fragment",
        "https://example.com:443/",
        "https://EXAMPLE.com/",
        "https://münchen.example/",
        "https://xn--mnchen-3ya.example/",
        "https://a_b.example.com/",
        "https://127.0.0.1.example.com/",
        "https://example.com/@user",
        "https://example.com/?a=@b",
    ],
)
def test_an_ordinary_url_is_accepted(url: str) -> None:
    check_url(url)


def test_the_operator_may_open_more() -> None:
    check_url("https://example.com:8443/", ports=(443, 8443))
    for url in ("http://127.0.0.1:8000/", "http://localhost/", "https://receiver:99/", "http://[::1]:1/"):
        check_url(url, allow_private=True)
    for url in ("http://169.254.169.254/latest/meta-data", "http://2130706433/", "http://a:b@localhost/"):
        with pytest.raises(EgressRefused):
            check_url(url, allow_private=True)


class TestListOfHosts:
    HOSTS = ("api.example.com", "*.Partner.example", "203.0.114.7", "2606:4700:0::1111", "münchen.example")

    @pytest.mark.parametrize(
        "url",
        [
            "https://api.example.com/hook",
            "https://API.example.com/hook",
            "https://a.partner.example/",
            "https://a.b.partner.example/",
            "https://203.0.114.7/",
            "https://[2606:4700::1111]/",
            "https://xn--mnchen-3ya.example/",
        ],
    )
    def test_a_host_on_it_is_accepted(self, url: str) -> None:
        check_url(url, hosts=self.HOSTS)

    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com/",
            "https://x.api.example.com/",
            "https://evilapi.example.com/",
            "https://api.example.com.evil.example/",
            "https://partner.example/",
            "https://evilpartner.example/",
            "https://203.0.114.8/",
            "https://[2606:4700::1112]/",
        ],
    )
    def test_any_other_is_refused(self, url: str) -> None:
        with pytest.raises(EgressRefused, match="list of hosts"):
            check_url(url, hosts=self.HOSTS)

    def test_an_empty_list_allows_nothing(self) -> None:
        with pytest.raises(EgressRefused, match="list of hosts"):
            check_url("https://example.com/", hosts=())

    def test_being_on_it_opens_no_private_address(self) -> None:
        with pytest.raises(EgressRefused, match="not public"):
            check_url("https://127.0.0.1/", hosts=("127.0.0.1",))
        with pytest.raises(EgressRefused, match="list of hosts"):
            check_url("http://127.0.0.1/", hosts=("localhost",), allow_private=True)

    @pytest.mark.parametrize(
        "text",
        ["", "*", "*.", "*.com", "a.*.com", "https://a.com", "a.com/x", "a.com:443", "u@a.com", "*.127.0.0.1", "127.1"],
    )
    def test_an_entry_that_is_no_host(self, text: str) -> None:
        with pytest.raises(ValueError, match="is no host"):
            host_pattern(text)
