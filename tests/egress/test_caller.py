"""Questions that are asked again, against real servers; the time between tries is a clock that the test turns."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

from bgpo.egress import Caller, CallFailed, Egress, Gate
from bgpo.egress.caller import RETRIES
from tests.egress.test_gate import TurnedClock
from tests.jobs.receivers import OK, Receiver, Request, receiver, saying, status

SECRET = 'tok"en-0123456789'


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def ask(clock: TurnedClock) -> Callable[..., bytes]:
    """Asks a server."""

    def post(server: Receiver, *, timeout_s: float = 60, max_bytes: int = 1000, rate: int | None = None) -> bytes:
        caller = Caller(Egress(allow_private=True), Gate(4, rate, clock), [SECRET, ""])
        url = f"http://127.0.0.1:{server.port}/?token={SECRET}"
        return caller.post(url, b"{}", dict, timeout_s=timeout_s, max_bytes=max_bytes)

    return post


def body(content: bytes, code: int = 200) -> bytes:
    return f"HTTP/1.1 {code} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(code: int, ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(status(code), status(code), OK)) as server:
        assert ask(server) == b"ok"
    assert len(server.requests) == 3
    first, second = clock.slept
    assert 0.5 <= first <= 0.75
    assert 1.0 <= second <= 1.5


def test_at_most_so_often(ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(body(b"busy", 503))) as server, pytest.raises(CallFailed) as failed:
        ask(server)
    assert len(server.requests) == RETRIES + 1 == 4
    assert failed.value.message == "the answer has status 503 (tried 4 times)"
    assert failed.value.details == "busy"


@pytest.mark.parametrize("code", [301, 302, 307, 308, 400, 401, 403, 404, 409, 410, 422])
def test_what_will_not_change_is_final(code: int, ask: Callable[..., bytes]) -> None:
    with (
        receiver(saying(status(code, "Location: /elsewhere"), OK)) as server,
        pytest.raises(CallFailed, match=str(code)),
    ):
        ask(server)
    assert len(server.requests) == 1


def test_a_redirect_into_the_network_is_not_followed(ask: Callable[..., bytes]) -> None:
    with receiver(saying(OK)) as inner:
        answer = status(307, f"Location: http://127.0.0.1:{inner.port}/")
        with receiver(saying(answer)) as server, pytest.raises(CallFailed, match="redirects are not followed"):
            ask(server)
    assert inner.connections == 0


@pytest.mark.parametrize(("header", "wait"), [("7", 7), ("9999", 30), ("0", 0.5), ("soon", 0.5)])
def test_the_receivers_wish_is_a_wait(header: str, wait: float, ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(status(429, f"Retry-After: {header}"), OK)) as server:
        assert ask(server) == b"ok"
    (slept,) = clock.slept
    assert wait <= slept <= max(wait, 0.75)


def test_the_receivers_wish_can_be_a_date(ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(status(429, f"Retry-After: {formatdate(time.time() + 25, usegmt=True)}"), OK)) as server:
        assert ask(server) == b"ok"
    assert 0.75 < clock.slept[0] <= 25


def test_a_wait_beyond_the_time_is_not_begun(ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(status(429, "Retry-After: 20"), OK)) as server, pytest.raises(CallFailed, match=r"429$"):
        ask(server, timeout_s=15)
    assert (len(server.requests), clock.slept) == (1, [])


def test_the_rate_holds_for_tries_and_does_not_use_up_the_time(ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(status(500), status(500), OK)) as server:
        assert ask(server, timeout_s=15, rate=1) == b"ok"
    assert len(server.requests) == 3
    assert sum(clock.slept) == pytest.approx(120)


def test_an_answer_that_breaks_off_is_asked_for_again(ask: Callable[..., bytes]) -> None:
    with receiver(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", OK)) as server:
        assert ask(server) == b"ok"
    assert len(server.requests) == 2


def test_no_answer_is_asked_for_again(ask: Callable[..., bytes]) -> None:
    hung_up: list[bool] = []

    def answer(request: Request, connection: socket.socket) -> None:
        if hung_up:
            connection.sendall(OK)
        hung_up.append(True)

    with receiver(answer) as server:
        assert ask(server) == b"ok"
    assert len(server.requests) == 2


def test_nobody_there(ask: Callable[..., bytes], clock: TurnedClock) -> None:
    with receiver(saying(OK)) as server:
        pass
    with pytest.raises(CallFailed, match="refused the connection"):
        ask(server)
    assert len(clock.slept) == RETRIES


def test_an_answer_that_is_too_long_is_final(ask: Callable[..., bytes]) -> None:
    with receiver(saying(body(b"x" * 1001))) as server, pytest.raises(CallFailed, match="more than 1000 bytes"):
        ask(server)
    assert len(server.requests) == 1


def test_a_url_that_is_not_allowed_is_final(clock: TurnedClock) -> None:
    caller = Caller(Egress(), Gate(1, None, clock))
    with pytest.raises(CallFailed, match="not public"):
        caller.post("https://127.0.0.1/", b"", dict, timeout_s=5)
    assert clock.slept == []


def test_no_failure_shows_a_secret_or_the_url(ask: Callable[..., bytes]) -> None:
    """Also not the part of one that the cut of a long answer would leave."""
    for content in (
        f"bad token {SECRET}".encode(),
        b'{"echo": "' + SECRET.replace('"', '\\"').encode() + b'"}',
        b"x" * 490 + SECRET.encode(),
    ):
        with receiver(saying(body(content, 401))) as server, pytest.raises(CallFailed) as failed:
            ask(server)
        assert failed.value.details is not None
        assert "[secret" in failed.value.details
        for text in (str(failed.value), repr(failed.value), failed.value.details):
            assert "en-01234" not in text
            assert "token=" not in text
