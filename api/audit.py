"""Writes the audit log: every request that changes something, whatever came of it, and refused keys.

An entry is stored before the client has the whole answer, so what a client knows of has been recorded. What a request
was about is the id in its answer, or else in its path; nothing else of request or answer is looked at. Refused keys
are recorded up to a number for each address and minute, lest whoever tries keys can fill the disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.exchange import exchange_of
from api.rates import Rates
from jobs.errors import ServiceError
from jobs.repositories.audit import Act
from jobs.services import audit

_READS = ("GET", "HEAD", "OPTIONS")
_REFUSALS_A_MINUTE = 10
_MAX_ID = 256
_DONE = {
    "archive": "archived",
    "cancel": "cancelled",
    "clone": "cloned",
    "complete": "completed",
    "create": "created",
    "delete": "deleted",
    "evaluate": "evaluated",
    "export": "exported",
    "pause": "paused",
    "redeliver": "redelivered",
    "resume": "resumed",
    "retry": "retried",
    "rotate": "rotated",
    "test": "tested",
    "update": "updated",
}


class AuditMiddleware:
    """Records writes on their way back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _READS or exchange_of(scope).caller is None:
            await self._app(scope, receive, send)
        else:
            await _Write(scope, send).run(self._app, receive)


class _Write:
    """One request that may change something. JSON answers are held back until the entry is stored."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._start: Message | None = None
        self._held: list[Message] = []
        self._status = 500
        self._json = False

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        finished = False
        try:
            await app(self._scope, receive, self._pass)
            finished = True
        finally:
            if not finished or not self._json:
                await self._record(b"")

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._json = Headers(raw=message["headers"]).get("content-type", "").startswith("application/json")
        if not self._json:
            await self._send(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._record(b"".join(each.get("body", b"") for each in self._held))
            for each in self._held:
                await self._send(each)
            self._held = []

    async def _record(self, body: bytes) -> None:
        name = action_of(self._scope)
        if name is None:
            return  # no such path
        answer = _object(body)
        error = answer.get("error") if self._status >= 400 else None
        code = error.get("code") if isinstance(error, dict) else None
        own = None if self._status >= 400 else answer.get("id")
        await _store(self._scope, name, self._status, own or _named(self._scope), code)


async def record_refusal(request: Request, error: ServiceError) -> None:
    """A request was refused for its key, or for what the key may not do. Writes are recorded when they are answered."""
    exchange = exchange_of(request.scope)
    if exchange.caller is not None and request.method not in _READS:
        return
    rates: Rates = request.app.state.rates
    window = await rates.take("audit", _REFUSALS_A_MINUTE, exchange.ip or "unknown", alone=True)
    if window.allowed:
        name = "login.failed" if exchange.caller is None else "access.denied"
        await _store(request.scope, name, error.status, None, error.code)


async def _store(scope: Scope, action: str, status: int, object_id: object, code: object) -> None:
    exchange = exchange_of(scope)
    caller = exchange.caller
    act = Act(
        action=action,
        path=scope["path"],
        request_id=exchange.request_id,
        status=status,
        project_id=caller.project_id if caller is not None else None,
        actor=caller.key_id or "local" if caller is not None else None,
        ip=exchange.ip,
        object_id=object_id if isinstance(object_id, str) and len(object_id) <= _MAX_ID else None,
        code=code if isinstance(code, str) else None,
    )
    await run_in_threadpool(audit.record, cast(FastAPI, scope["app"]).state.context, act)


def action_of(scope: Scope) -> str | None:
    """What the route's function does, as an event: create_job is job.created. None when no route took the request."""
    name: str | None = getattr(scope.get("route"), "name", None)
    if name is None:
        return None
    verb, _, noun = name.partition("_")
    noun = noun.replace("checkpoint_permission", "checkpoint.permission")
    return f"{noun}.{_DONE[verb]}" if verb in _DONE else name


def _object(body: bytes) -> Mapping[str, Any]:
    answer = json.loads(body) if body else {}
    return answer if isinstance(answer, dict) else {}


def _named(scope: Scope) -> object:
    """The last id in the path."""
    parameters = scope.get("path_params") or {}
    return next(reversed(parameters.values()), None)
