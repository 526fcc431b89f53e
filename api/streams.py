"""How many event streams each key may have open at one API process.

A stream costs little, but it has no end of its own, so one client that forgets to close them could take the sockets of
all others. The count is of this process: behind N of them a key may have N times as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from api.exchange import exchange_of
from api.prometheus import Metrics
from jobs.errors import RateLimited

_WAIT_S = 5.0


class Streams:
    """One per process; call from the event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def enter(self, who: str) -> None:
        """Raises RateLimited."""
        if self._open[who] >= self._most:
            raise RateLimited(f"This API key has {self._most} streams open, as many as it may.", _WAIT_S)
        self._open[who] += 1

    def leave(self, who: str) -> None:
        """It is over."""
        self._open[who] -= 1
        if not self._open[who]:
            del self._open[who]


async def _stream(request: Request) -> AsyncIterator[None]:
    streams: Streams = request.app.state.streams
    metrics: Metrics = request.app.state.metrics
    exchange = exchange_of(request.scope)
    who = (exchange.caller.key_id if exchange.caller is not None else None) or "local"
    streams.enter(who)
    try:
        with metrics.streams.track_inprogress():
            yield
    finally:
        streams.leave(who)


OneStream = Annotated[None, Depends(_stream)]
"""Of a route that streams: refuses one too many; it lasts until the answer has ended."""
