"""Routes that make something: once per request, however often the client sends it. The rules: `jobs.services.once`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Header, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.exchange import exchange_of
from bgpo.errors import BgpoError
from jobs.context import Context
from jobs.errors import InProgress
from jobs.services import once
from jobs.services.once import Ticket, Wanted

_RENEW_S = once.LEASE_S / 3
_LOOK_S = 0.2
WAIT_S = 2 * once.LEASE_S
"""A retry waits this long for the first try: also for one whose process has just died."""
T = TypeVar("T")
_log = structlog.get_logger(__name__)

IdempotencyKey = Annotated[
    str | None, Header(description="Repeating a request with the same key gives the object the first one made.")
]


@dataclass(frozen=True)
class Repeats:
    """What the headers say of a request being a repetition."""

    request: Request
    key: str | None
    retry: int

    async def body_digest(self) -> str:
        """Of the path and the body, byte by byte: that is how clients repeat a request."""
        return hashlib.sha256(self.request.url.path.encode() + b"\n" + await self.request.body()).hexdigest()

    async def once(
        self,
        ctx: Context,
        project_id: str,
        operation: str,
        digest: str,
        *,
        make: Callable[[Ticket | None], T],
        load: Callable[[str], T],
    ) -> T:
        """What `make` made, now or for the first of the same requests; `load` gets it by its id.

        Raises:
            Conflict: another request has used the idempotency key.
            InProgress: the first one is still at work.
        """
        if await self.request.is_disconnected():
            raise ClientDisconnect  # it may have sent the next try already, and nobody waits for this one's answer
        caller = exchange_of(self.request.scope).caller
        wanted = Wanted(project_id, caller.key_id or "" if caller else "", operation, digest, self.key, self.retry)
        give_up_at = time.monotonic() + WAIT_S
        while True:
            turn = await run_in_threadpool(once.begin, ctx, wanted)
            if isinstance(turn, str):
                found = await _wait(ctx, turn, give_up_at)
                if isinstance(found, str):
                    return await run_in_threadpool(load, found)
                if found is None:
                    continue
                turn = found
            return await _work(ctx, turn, make)

    async def once_in_row(
        self,
        ctx: Context,
        project_id: str,
        operation: str,
        *,
        make: Callable[[Ticket | None], T],
        load: Callable[[str], T],
    ) -> T:
        """As `once`, of what keeps the Idempotency-Key in its own row: the key holds for as long as that is there."""
        if self.key is not None:
            return await run_in_threadpool(make, None)
        return await self.once(ctx, project_id, operation, await self.body_digest(), make=make, load=load)


async def _wait(ctx: Context, request_id: str, give_up_at: float) -> str | Ticket | None:
    """The id of the object, or a ticket when its maker has died; None when it made nothing."""
    while True:
        waited = await run_in_threadpool(once.wait, ctx, request_id)
        if waited.failed:
            return None
        if (done := waited.object_id or waited.ticket) is not None:
            return done
        if time.monotonic() > give_up_at:
            raise InProgress("The same request is still being worked on: try again a little later.")
        await asyncio.sleep(_LOOK_S)


async def _work(ctx: Context, ticket: Ticket, make: Callable[[Ticket], T]) -> T:
    try:
        async with kept_alive(ctx, ticket):
            return await run_in_threadpool(make, ticket)
    except BgpoError:  # after any other error it ends by itself, when it is not kept alive any more
        await run_in_threadpool(once.give_up, ctx, ticket)
        raise


@asynccontextmanager
async def kept_alive(ctx: Context, ticket: Ticket) -> AsyncIterator[None]:
    """Say within the block, every few seconds, that the work of a ticket goes on."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await run_in_threadpool(once.renew, ctx, ticket)
            except SQLAlchemyError as error:  # the next time, or not at all: the work's own transaction will tell
                _log.warning("a request could not be kept alive", request=ticket.request_id, error=str(error))

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _repeats(
    request: Request,
    idempotency_key: IdempotencyKey = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Repeats:
    once.check_key(idempotency_key)
    count = x_stainless_retry_count or ""
    return Repeats(request, idempotency_key, int(count) if count.isdecimal() and len(count) < 4 else 0)


Once = Annotated[Repeats, Depends(_repeats)]
