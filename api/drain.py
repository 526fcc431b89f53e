"""Throwing a body away. A client that is cut off while it sends sees a broken connection and not our answer."""

from __future__ import annotations

from starlette.types import Receive, Scope

from api.exchange import exchange_of


async def drain(scope: Scope, receive: Receive, limit: int) -> None:
    """Read the rest of a request's body, up to `limit` bytes.

    After the end of a body `receive` waits until the client goes away, so it is not called then.
    """
    exchange, seen = exchange_of(scope), 0
    while not exchange.received and seen <= limit:
        message = await receive()
        seen += len(message.get("body", b""))
