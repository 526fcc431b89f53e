"""Outermost layer of every request: an id, its headers, limits of size and time for the body, no tracebacks.

A body must arrive at `_MIN_BYTES_A_SECOND` on average, after the first `request_timeout_s`, or the request ends with
status 408: so a large upload may take its time, and one that trickles (slowloris) holds nothing for long.

Plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import exchange
from api.drain import drain
from api.errors import envelope
from api.headers import complete
from api.prometheus import Metrics
from jobs import origin, tracing
from jobs.settings import Settings

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_HEAD_BYTES = 32 * 1024
_MAX_DRAINED_BYTES = 16 * MAX_BODY_BYTES
_MIN_BYTES_A_SECOND = 16 * 1024
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What may stand in a log line and in a job; another one is as good as none."""
_CLOSE = {"connection": "close"}
_READS = ("GET", "HEAD", "OPTIONS")
_UPLOADS = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")
_log = structlog.get_logger(__name__)


class RequestMiddleware:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Exchange(self._app, scope, receive, send).run()


class _Exchange:
    """One request and its response."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._request_id = f"req_{uuid.uuid4().hex}"
        self._exchange = exchange.begin(scope, self._request_id)
        self._began = time.monotonic()
        self._started = False
        self._status = 499  # as nginx writes it: the client went away before there was an answer
        self._received = 0
        settings: Settings = scope["app"].state.settings
        self._patience_s = settings.request_timeout_s

    async def run(self) -> None:
        with tracing.span(
            self._scope["method"],
            kind="SERVER",
            parent={"traceparent": Headers(scope=self._scope).get("traceparent", "")},
            http__request__method=self._scope["method"],
            bgpo__request=self._request_id,
        ) as span:
            structlog.contextvars.bind_contextvars(**self._named(span.traceparent))
            await self._watched()
            span.rename(f"{self._scope['method']} {self._route()}")
            span.set(http__route=self._route(), http__response__status_code=self._status)
            if self._status >= 500:
                span.fail()

    async def _watched(self) -> None:
        metrics: Metrics = self._scope["app"].state.metrics
        try:
            with metrics.request():
                await self._answer()
        finally:
            took_s = time.monotonic() - self._began
            metrics.answered(self._scope["method"], self._route(), self._status, took_s)
            level = logging.INFO if self._scope["method"] not in _READS or self._status >= 500 else logging.DEBUG
            _log.log(level, "request", **self._seen(took_s))
            structlog.contextvars.unbind_contextvars(*origin.KEYS)

    async def _answer(self) -> None:
        try:
            if sum(len(name) + len(value) for name, value in self._scope["headers"]) > MAX_HEAD_BYTES:
                refusal = envelope(431, "The request's head is too large.", code="headers_too_large")
                await refusal(self._scope, self._receive, self._respond)
                return
            limited = _UPLOADS.fullmatch(self._scope["path"]) is None  # those have a limit and a message of their own
            if limited and _content_length(self._scope) > MAX_BODY_BYTES:
                await self._too_large()
                return
            await self._app(self._scope, self._receive_limited if limited else self._receive_in_time, self._respond)
        except ClientDisconnect:
            _log.info("request.abandoned", method=self._scope["method"], path=self._scope["path"])
        except HTTPException as error:  # of our own, met outside of the application
            await envelope(error.status_code, error.detail, code="request_timeout", headers=error.headers)(
                self._scope, self._receive, self._respond
            )
        except Exception:  # process boundary: whatever broke, the client gets an envelope and the log the traceback
            _log.exception("request.failed", method=self._scope["method"], path=self._scope["path"])
            if self._started:
                raise  # too late to say so; the server cuts the connection
            text = f"The server had an error. Please quote the request id {self._request_id}."
            await envelope(500, text, code="server_error")(self._scope, self._receive, self._respond)

    def _route(self) -> str:
        """The template of the path; a path of its own each would make series without end."""
        route = self._scope.get("route")
        return self._exchange.route or getattr(route, "path", None) or "unmatched"

    def _seen(self, took_s: float) -> dict[str, Any]:
        caller = self._exchange.caller
        who = {"key_id": caller.key_id, "project_id": caller.project_id} if caller is not None else {}
        path, status = self._scope["path"], self._status
        return {"method": self._scope["method"], "path": path, "status": status, "ms": int(took_s * 1000), **who}

    def _named(self, traceparent: str | None) -> dict[str, str]:
        """The request's ids for the log and for what it makes: ours, and the client's own beside it, if it has one."""
        given = Headers(scope=self._scope).get("x-client-request-id", "")
        own = {"request_id": self._request_id}
        own |= {"traceparent": traceparent} if traceparent is not None else {}
        return own | {"client_request_id": given} if _CLIENT_ID.fullmatch(given) else own

    async def _receive_limited(self) -> Message:
        message = await self._receive_in_time()
        if self._received > MAX_BODY_BYTES:
            await drain(self._scope, self._receive_in_time, _MAX_DRAINED_BYTES)
            raise HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        return message

    async def _receive_in_time(self) -> Message:
        if self._exchange.received or self._started:  # what is waited for now is that the client goes away
            return await self._receive()
        left_s = self._began + self._patience_s + self._received / _MIN_BYTES_A_SECOND - time.monotonic()
        try:
            async with asyncio.timeout(max(left_s, 0)):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The body did not arrive in time.", _CLOSE) from None
        self._received += len(message.get("body", b""))
        self._exchange.received = not message.get("more_body", False)
        return message

    async def _too_large(self) -> None:
        if "expect" not in Headers(scope=self._scope):  # else the client waits for our word before it sends
            await drain(self._scope, self._receive_in_time, _MAX_DRAINED_BYTES)
        response = envelope(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
        await response(self._scope, self._receive, self._respond)

    async def _respond(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started, self._status = True, message["status"]
            took_ms = int((time.monotonic() - self._began) * 1000)
            own = ((b"x-request-id", self._request_id.encode()), (b"openai-processing-ms", b"%d" % took_ms))
            message["headers"] = [*complete(message.get("headers", ())), *own, *self._exchange.headers]
            if (caller := self._exchange.caller) is not None:
                message["headers"].append((b"openai-organization", caller.organization_id.encode()))
        await self._send(message)


def _content_length(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "0")
    return int(text) if text.isdecimal() else 0
