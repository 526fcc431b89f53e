"""Making the object of a request once, however often the request arrives.

Clients of OpenAI's API repeat a POST whose answer they did not get. They send no key that would say so, only
`x-stainless-retry-count`: such a retry gets the object of its twin, the same request of the same key of the last ten
minutes, if there is one. A first try is always a new wish, even if the same was wished before. Whoever sends an
`Idempotency-Key` gets the object of the first request with it. Either way the first may still be at work; then the
other waits for what comes of it (`api.once` does the waiting).

A request is written down before its work begins, and finished in the transaction that inserts the object. The process
at work says so every few seconds. When it dies, a request that waits takes its place; should the first come back to
life, its transaction is undone, since the row is not its own any more.

What this cannot tell: a retry whose first try was lost on the way there gets the object of a deliberate request that
was the same, within ten minutes and not retried itself. Only an Idempotency-Key says which is which.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import Conflict, InProgress, InvalidRequest
from jobs.repositories import requests
from jobs.repositories.requests import Wanted

__all__ = ["MAX_KEY", "Ticket", "Wanted", "begin", "check_key", "digest_of", "finish", "give_up", "renew", "wait"]
MAX_KEY = 255
TWIN_S = 600.0
LEASE_S = 15.0
"""A request whose process was silent for this long is taken for dead."""


@dataclass(frozen=True)
class Ticket:
    """The right to do the work of a request."""

    request_id: str
    token: str


def digest_of(request: Mapping[str, Any]) -> str:
    """What tells a request from another one."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def check_key(key: str | None) -> None:
    """Raises InvalidRequest for an Idempotency-Key that cannot be one."""
    if key is not None and not (key.isprintable() and 0 < len(key) <= MAX_KEY):
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} printable characters.")


def begin(ctx: Context, wanted: Wanted) -> Ticket | str:
    """A ticket when the work is to be done here, else the id of the request to wait for.

    Raises:
        Conflict: another request has used the idempotency key.
    """
    with ctx.db.transaction() as session:
        requests.lock(session, wanted.project_id)
        if wanted.key is not None:
            found = requests.by_key(session, wanted)
            if found is not None and found.digest != wanted.digest:
                raise reused()
        else:
            found = requests.twin(session, wanted, TWIN_S) if wanted.retry else None
        if found is not None:
            return found.id
        token = secrets.token_hex(8)
        return Ticket(requests.insert(session, wanted, token, LEASE_S), token)


def reused() -> Conflict:
    """An idempotency key came with two different requests."""
    return Conflict("This Idempotency-Key was used with another request.", None, "idempotency_key_reused")


@dataclass(frozen=True)
class Waited:
    """What became of a request so far."""

    object_id: str | None = None
    ticket: Ticket | None = None
    """Its process died: the work is ours."""
    failed: bool = False
    """It made nothing."""


def wait(ctx: Context, request_id: str) -> Waited:
    """One look at a request that somebody else works on."""
    with ctx.db.read() as session:
        found = requests.get(session, request_id)
    if found is None:
        return Waited(failed=True)
    if found.object_id is not None or found.alive:
        return Waited(object_id=found.object_id)
    token = secrets.token_hex(8)
    with ctx.db.transaction() as session:
        taken = requests.take_over(session, request_id, token, LEASE_S)
    return Waited(ticket=Ticket(request_id, token) if taken else None)


def renew(ctx: Context, ticket: Ticket) -> None:
    """Say that the work goes on."""
    with ctx.db.transaction() as session:
        requests.renew(session, ticket.request_id, ticket.token, LEASE_S)


def finish(session: Session, ticket: Ticket | None, object_id: str) -> None:
    """The object exists, once this transaction does. Raises InProgress when somebody else has taken the work over."""
    if ticket is not None and not requests.finish(session, ticket.request_id, ticket.token, object_id):
        raise InProgress("This request was too slow, and its retry has taken over.")


def give_up(ctx: Context, ticket: Ticket) -> None:
    """The request made nothing: its retry may try anew."""
    with ctx.db.transaction() as session:
        requests.forget(session, ticket.request_id, ticket.token)
