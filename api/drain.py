"""Throwing a body away. A client that is cut off while it sends sees a broken connection and not our answer."""

from __future__ import annotations

from starlette.types import Receive


async def drain(receive: Receive, limit: int) -> None:
    """Read the rest of a request's body, up to `limit` bytes."""
    seen, more = 0, True
    while more and seen <= limit:
        message = await receive()
        seen += len(message.get("body", b""))
        more = message.get("more_body", False)
