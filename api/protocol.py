"""The HTTP/1.1 connection: uvicorn's, with time limits and with our envelope for what is not HTTP.

uvicorn waits for ever for the rest of a request's head and for a client that does not read its answer, so that a few
thousand idle sockets (slowloris) would keep everybody else out. Here the head must be complete `request_timeout_s`
after its first byte, or after the connection began; what an answered request still has to send is waited for as long;
and so is a client that takes nothing of its answer. The body of a request that is being answered has its limit in
`api.middleware`.

What cannot be read as HTTP reaches no application, so its answer is made here.
"""

from __future__ import annotations

import asyncio
import http
import json
import sys
import uuid
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.errors import error_body
from api.headers import SECURITY


class _NoTimer:
    def cancel(self) -> None:
        """There is nothing to stop."""


_MESSAGES = {
    408: ("The request's head did not arrive in time.", "request_timeout"),
    431: ("The request's head is too large.", "headers_too_large"),
}
_NEVER: Any = _NoTimer()
_MALFORMED = ("This is not an HTTP request.", "malformed_request")


class Protocol(H11Protocol):
    """One connection."""

    limit_s: ClassVar[float]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = self._stalled = _NEVER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        self._reading = self.loop.call_later(self.limit_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.cancel()
        self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled.cancel()
        self._stalled = self.loop.call_later(self.limit_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.cancel()

    def send_400_response(self, msg: str) -> None:
        """Called by the base class while it handles h11's error."""
        error = sys.exc_info()[1]
        self._refuse(error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400)

    def _watch(self) -> None:
        """Keep the timer exactly while bytes of a head, or of a body nobody reads any more, are outstanding."""
        state = self.conn.their_state
        begun = state is h11.IDLE and bool(self.conn.trailing_data[0])
        abandoned = state is h11.SEND_BODY and self.cycle.response_complete
        if not (begun or abandoned) or self.transport.is_closing():
            self._reading.cancel()
            self._reading = _NEVER
        elif self._reading is _NEVER:
            self._reading = self.loop.call_later(self.limit_s, self._too_slow)

    def _too_slow(self) -> None:
        self._reading = _NEVER
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408)
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun: nothing can be said
            self.transport.abort()
            return
        message, code = _MESSAGES.get(status, _MALFORMED)
        body = json.dumps(error_body(status, message, code=code)).encode()
        request_id = f"req_{uuid.uuid4().hex}".encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id),
            *SECURITY,
        ]
        reason = http.HTTPStatus(status).phrase.encode()
        for event in (
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def limited(seconds: float) -> type[Protocol]:
    """The protocol with this limit; uvicorn makes connections from a class."""
    return type("LimitedProtocol", (Protocol,), {"limit_s": seconds})
