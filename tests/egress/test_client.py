"""The egress client against real servers on loopback: pinning, TLS, and receivers that mean no good."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
import trustme

from bgpo.egress import Egress, EgressFailed, EgressRefused, Limits, resolve
from tests.jobs.receivers import OK, Request, receiver, saying, status

SHORT = Limits(connect_s=1, read_s=1, total_s=1)
"""For receivers that use all the time there is."""
SMALL = Limits(max_bytes=1000)


def to(*addresses: str) -> Callable[[str, int], Sequence[str]]:
    """A resolver with one answer."""
    return lambda host, port: addresses


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whom the client trusts."""
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> Callable[..., ssl.SSLContext]:
    """Makes the TLS side of a server with a certificate for some names."""

    def make(*names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        return context

    return make


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """Trusts only the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


class TestRequests:
    def test_a_request_arrives_and_its_answer_comes_back(self) -> None:
        answer = b"HTTP/1.1 201 Created\r\nX-Some: Thing\r\nContent-Length: 5\r\n\r\nhello"
        with receiver(saying(answer)) as server:
            url = f"http://127.0.0.1:{server.port}/a/b?c=%20d#e"
            reply = Egress(allow_private=True).request("POST", url, headers={"X-Mine": "1"}, content=b"body")
        assert (reply.status, reply.headers["x-some"], reply.body, reply.cut) == (201, "Thing", b"hello", False)
        (request,) = server.requests
        assert request.line == "POST /a/b?c=%20d HTTP/1.1"
        assert request.body == b"body"
        assert request.headers["host"] == f"127.0.0.1:{server.port}"
        assert request.headers["x-mine"] == "1"
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("bgpo/")

    def test_over_ipv6(self) -> None:
        with receiver(saying(OK), host="::1") as server:
            url = f"http://[::1]:{server.port}/"
            assert Egress(allow_private=True).request("POST", url).status == 200
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"

    def test_a_chunked_answer(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        with receiver(saying(answer)) as server:
            reply = Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/")
        assert (reply.body, reply.cut) == (b"abcde", False)

    def test_the_environments_proxy_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiver(saying(OK)) as server, receiver(saying(OK)) as proxy:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("NO_PROXY", "")
            Egress(allow_private=True).request("POST", f"http://127.0.0.1:{server.port}/")
        assert (len(server.requests), proxy.connections) == (1, 0)

    def test_a_redirect_is_an_answer(self) -> None:
        with receiver(saying(OK)) as inner:
            redirect = status(302, f"Location: http://127.0.0.1:{inner.port}/")
            with receiver(saying(redirect)) as server:
                reply = Egress(allow_private=True).request("POST", f"http://127.0.0.1:{server.port}/")
        assert (reply.status, inner.connections) == (302, 0)

    def test_headers_cannot_be_smuggled(self) -> None:
        with receiver(saying(OK)) as server:
            url = f"http://127.0.0.1:{server.port}/"
            with pytest.raises(EgressFailed):
                Egress(allow_private=True).request("POST", url, headers={"X-Mine": "1\r\nX-Injected: 2"})
        assert server.requests == []


class TestPinning:
    def test_without_leave_nothing_reaches_loopback(self) -> None:
        with receiver(saying(OK)) as server:
            client = Egress(ports=(server.port,), resolver=to("127.0.0.1"))
            for host in ("receiver.example", "127.0.0.1", "[::ffff:127.0.0.1]"):
                with pytest.raises(EgressRefused, match="not public"):
                    client.request("POST", f"https://{host}:{server.port}/")
        assert server.connections == 0

    def test_one_inner_address_among_public_ones_is_enough_to_refuse(self) -> None:
        with receiver(saying(OK)) as server:
            for addresses in (("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("2606:4700::1", "::ffff:10.0.0.1")):
                client = Egress(ports=(server.port,), resolver=to(*addresses))
                with pytest.raises(EgressRefused, match="not public"):
                    client.request("POST", f"https://receiver.example:{server.port}/")
        assert server.connections == 0

    def test_a_host_that_is_not_listed_is_not_even_resolved(self) -> None:
        asked: list[str] = []

        def resolver(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"]

        with receiver(saying(OK)) as server:
            client = Egress(allow_private=True, hosts=("*.example.com",), resolver=resolver)
            with pytest.raises(EgressRefused, match="list of hosts"):
                client.request("POST", f"http://example.org:{server.port}/")
            assert (asked, server.connections) == ([], 0)
            assert client.request("POST", f"http://a.example.com:{server.port}/").status == 200
        assert asked == ["a.example.com"]

    def test_the_refusal_names_no_inner_address(self) -> None:
        with pytest.raises(EgressRefused) as refused:
            Egress(resolver=to("10.20.30.40")).request("POST", "https://receiver.example/")
        assert "10.20" not in str(refused.value)

    def test_the_name_is_resolved_once_and_the_connection_goes_to_that_answer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rebinding name: 127.0.0.1 (allowed here) first, then where an attacker wants us."""
        with receiver(saying(OK)) as first, receiver(saying(OK), host="127.0.0.2") as second:
            answers = [["127.0.0.1"], ["127.0.0.2"]]
            asked: list[str] = []

            def rebinding(host: str, port: int) -> list[str]:
                asked.append(host)
                return answers.pop(0)

            connected: list[tuple[str, int]] = []
            real = socket.create_connection

            def watch(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
                connected.append(address)
                return real(address, timeout)

            monkeypatch.setattr(socket, "create_connection", watch)
            client = Egress(allow_private=True, resolver=rebinding)
            assert client.request("POST", f"http://receiver.example:{first.port}/").status == 200
        assert asked == ["receiver.example"]
        assert connected == [("127.0.0.1", first.port)]
        assert (first.connections, second.connections) == (1, 0)
        assert first.requests[0].headers["host"] == f"receiver.example:{first.port}"

    def test_each_request_is_checked_anew(self) -> None:
        answers = [["127.0.0.1"], ["169.254.169.254"]]
        with receiver(saying(OK)) as server:
            client = Egress(allow_private=True, resolver=lambda host, port: answers.pop(0))
            url = f"http://receiver.example:{server.port}/"
            assert client.request("POST", url).status == 200
            with pytest.raises(EgressRefused, match="not public"):
                client.request("POST", url)
        assert server.connections == 1

    def test_the_next_address_is_tried_when_one_does_not_answer(self) -> None:
        with receiver(saying(OK)) as server:
            client = Egress(allow_private=True, resolver=to("::1", "127.0.0.1"))  # only the latter listens
            assert client.request("POST", f"http://receiver.example:{server.port}/").status == 200

    def test_the_systems_resolver(self) -> None:
        assert set(resolve("localhost", 443)) <= {"127.0.0.1", "::1"}
        with receiver(saying(OK)) as server:
            assert Egress(allow_private=True).request("GET", f"http://localhost:{server.port}/").status == 200
        for spelling in ("2130706433", "0x7f.1", "127.1"):  # why such hosts are refused: it reads them
            assert resolve(spelling, 443) == ["127.0.0.1"]

    @pytest.mark.parametrize("found", [[], OSError("no such name")])
    def test_a_name_without_address(self, found: list[str] | OSError) -> None:
        def resolver(host: str, port: int) -> list[str]:
            if isinstance(found, OSError):
                raise found
            return found

        with pytest.raises(EgressFailed, match="its name"):
            Egress(resolver=resolver).request("POST", "https://receiver.example/")


class TestTls:
    def url(self, host: str, port: int) -> str:
        return f"https://{host}:{port}/"

    def test_the_name_is_proved_and_not_the_address(
        self, server_tls: Callable[..., ssl.SSLContext], client_tls: ssl.SSLContext
    ) -> None:
        names: list[str | None] = []
        tls = server_tls("receiver.example")
        tls.sni_callback = lambda connection, name, context: names.append(name)
        with receiver(saying(OK), tls=tls) as server:
            client = Egress(allow_private=True, resolver=to("127.0.0.1"), tls=client_tls)
            assert client.request("POST", self.url("receiver.example", server.port)).status == 200
        assert names == ["receiver.example"]
        assert server.requests[0].headers["host"] == f"receiver.example:{server.port}"

    @pytest.mark.parametrize("names", [("other.example",), ("127.0.0.1",)])
    def test_a_certificate_for_another_name(
        self, server_tls: Callable[..., ssl.SSLContext], client_tls: ssl.SSLContext, names: tuple[str, ...]
    ) -> None:
        with receiver(saying(OK), tls=server_tls(*names)) as server:
            client = Egress(allow_private=True, resolver=to("127.0.0.1"), tls=client_tls)
            with pytest.raises(EgressFailed, match="certificate is not valid: Hostname mismatch"):
                client.request("POST", self.url("receiver.example", server.port))
        assert server.requests == []

    def test_a_certificate_of_an_address(
        self, server_tls: Callable[..., ssl.SSLContext], client_tls: ssl.SSLContext
    ) -> None:
        with receiver(saying(OK), tls=server_tls("127.0.0.1")) as server:
            client = Egress(allow_private=True, tls=client_tls)
            assert client.request("POST", self.url("127.0.0.1", server.port)).status == 200

    def test_an_unknown_authority(self, server_tls: Callable[..., ssl.SSLContext]) -> None:
        with receiver(saying(OK), tls=server_tls("receiver.example")) as server:
            client = Egress(allow_private=True, resolver=to("127.0.0.1"))
            with pytest.raises(EgressFailed, match="certificate is not valid"):
                client.request("POST", self.url("receiver.example", server.port))
        assert server.requests == []

    def test_a_server_without_tls(self, client_tls: ssl.SSLContext) -> None:
        with socket.create_server(("127.0.0.1", 0)) as plain:
            thread = threading.Thread(target=_say_once, args=(plain, b"HTTP/1.1 200 OK\r\n\r\n"))
            thread.start()
            client = Egress(allow_private=True, tls=client_tls)
            with pytest.raises(EgressFailed, match="TLS"):
                client.request("POST", self.url("127.0.0.1", plain.getsockname()[1]))
            thread.join()


def _say_once(listener: socket.socket, content: bytes) -> None:
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        connection.sendall(content)
        connection.settimeout(30)
        while connection.recv(65536):
            pass


class TestLimits:
    """None of these receivers would ever let go; each test ends because the client does."""

    @pytest.fixture
    def over(self) -> Iterator[threading.Event]:
        """Set at the end of the test, so that the receivers end as well."""
        event = threading.Event()
        yield event
        event.set()

    def test_a_body_that_is_too_long_is_cut(self) -> None:
        with receiver(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000)) as server:
            reply = Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SMALL)
        assert (reply.status, len(reply.body), reply.cut) == (200, 1000, True)

    def test_a_body_of_exactly_the_limit_is_whole(self) -> None:
        with receiver(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)) as server:
            reply = Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SMALL)
        assert (len(reply.body), reply.cut) == (1000, False)

    @pytest.mark.parametrize("framing", [b"", b"Content-Length: 999999999999\r\n", b"Transfer-Encoding: chunked\r\n"])
    def test_a_body_without_end(self, framing: bytes) -> None:
        piece = b"10\r\n0123456789abcdef\r\n" if b"chunked" in framing else b"x" * 4096

        def pour(request: Request, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
            while True:
                connection.sendall(piece)

        limits = Limits(total_s=60, max_bytes=100_000)  # the size ends it, long before the time would
        with receiver(pour) as server:
            reply = Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=limits)
        assert (len(reply.body), reply.cut) == (100_000, True)

    def test_a_body_that_drips(self, over: threading.Event) -> None:
        """Each byte comes well within the time for one read."""

        def drip(request: Request, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
            while not over.wait(0.05):
                connection.sendall(b"x")

        with receiver(drip) as server:
            reply = Egress(allow_private=True).request(
                "GET", f"http://127.0.0.1:{server.port}/", limits=Limits(total_s=3)
            )
            over.set()
        assert (reply.status, reply.cut) == (200, True)
        assert 0 < len(reply.body) < 999

    def test_a_body_that_breaks_off(self) -> None:
        with receiver(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")) as server:
            reply = Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SMALL)
        assert (reply.status, reply.body, reply.cut) == (200, b"abc", True)

    def test_headers_that_drip(self, over: threading.Event) -> None:
        def drip(request: Request, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.05):
                connection.sendall(b"x")

        with receiver(drip) as server:
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SHORT)
            over.set()

    def test_headers_without_end(self) -> None:
        def pour(request: Request, connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.sendall(b"X-More: " + b"x" * 4096 + b"\r\n")

        with receiver(pour) as server, pytest.raises(EgressFailed, match="HTTP"):
            Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=Limits(total_s=60))

    def test_interim_answers_without_end(self, over: threading.Event) -> None:
        def pour(request: Request, connection: socket.socket) -> None:
            while not over.wait(0.01):
                connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")

        with receiver(pour) as server:
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SHORT)
            over.set()

    def test_silence(self, over: threading.Event) -> None:
        with receiver(lambda request, connection: over.wait(60) and None) as server:
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=SHORT)
            over.set()

    def test_a_receiver_that_does_not_read(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("POST", url, content=b"x" * (64 << 20), limits=SHORT)

    def test_a_handshake_that_never_ends(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("POST", url, limits=SHORT)

    def test_a_connection_that_is_not_accepted(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            address = listener.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:  # fills the queue: the next SYN is dropped
                one.setblocking(False)
                one.connect_ex(address)
            with pytest.raises(EgressFailed, match="too long"):
                Egress(allow_private=True).request("POST", f"http://127.0.0.1:{address[1]}/", limits=SHORT)
            for one in waiting:
                one.close()

    def test_a_resolver_that_hangs(self, over: threading.Event) -> None:
        def hang(host: str, port: int) -> list[str]:
            over.wait(60)
            return ["127.0.0.1"]

        with pytest.raises(EgressFailed, match="resolved in time"):
            Egress(resolver=hang).request("POST", "https://receiver.example/", limits=SHORT)

    @pytest.mark.parametrize(
        "answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\x00\xff\x00\xff\r\n\r\n", b"HTTP/1.1 9999 \r\n\r\n"]
    )
    def test_something_that_is_not_http(self, answer: bytes) -> None:
        with receiver(saying(answer)) as server, pytest.raises(EgressFailed, match=r"HTTP|connection failed"):
            Egress(allow_private=True).request("GET", f"http://127.0.0.1:{server.port}/", limits=Limits(total_s=20))

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(EgressFailed, match="refused"):
            Egress(allow_private=True).request("GET", f"http://127.0.0.1:{port}/")

    @pytest.mark.timeout(60)  # the limits of the parts are longer
    def test_the_time_for_all_ends_every_part(self) -> None:
        limits = Limits(connect_s=1000, read_s=1000, total_s=0.2)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for scheme in ("http", "https"):
                url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/"
                with pytest.raises(EgressFailed, match="too long"):
                    Egress(allow_private=True).request("GET", url, limits=limits)
