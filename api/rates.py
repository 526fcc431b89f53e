"""How many requests a minute: moving windows in Redis, shared by all API processes.

While Redis does not answer, each process counts for itself: a service that refused everybody because its counter is
away would be worse than one that is generous for a while. Where no limit is set nothing is asked at all.

Requests that arrive while Redis is being asked for others of their kind wait, and are then counted together: asking it
costs more than all else a status poll does.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool
from starlette.requests import Request

from api.exchange import exchange_of
from jobs.errors import NeverFits, RateLimited

_ANSWER_S = 0.5
_AWAY_S = 5.0  # how long Redis is left alone after it failed
_Which = tuple[str, int, str]
"""Name of a limit, the limit, and whose requests are counted."""


@dataclass(frozen=True)
class Window:
    """How much of a limit is left."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    """Until all of it is there again."""

    def headers(self, kind: str) -> list[tuple[bytes, bytes]]:
        """As OpenAI's API tells it; `kind` is `requests` or `tokens`."""
        values = {"limit": str(self.limit), "remaining": str(self.remaining), "reset": duration(self.reset_s)}
        return [(f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items()]


_log = structlog.get_logger(__name__)


class Rates:
    """One per process; call from one event loop."""

    def __init__(self, redis_url: str) -> None:
        options = {"socket_timeout": _ANSWER_S, "socket_connect_timeout": _ANSWER_S}
        self._connections = ConnectionPool.from_url(redis_url, **options)
        # Typed as if it took only numbers and texts.
        pool: Any = {"connection_pool": self._connections}
        storage = RedisStorage(
            f"async+{redis_url}", wrap_exceptions=True, implementation="redispy", key_prefix="bgpo-limits", **pool
        )
        self._shared = MovingWindowRateLimiter(storage)
        self._own: MovingWindowRateLimiter | None = None
        self._away_until = 0.0
        self._waiting: dict[_Which, list[asyncio.Future[Window]]] = {}
        self._taking: dict[_Which, asyncio.Task[None]] = {}

    async def take(self, name: str, limit: int, who: str, cost: int = 1, *, alone: bool = False) -> Window:
        """Count a request against a limit a minute, unless it is beyond it.

        Args:
            alone: for this process only, whatever the others count.
        """
        if alone or cost != 1:
            return await self._ask(name, limit, who, cost, alone=alone)
        which = (name, limit, who)
        window: asyncio.Future[Window] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(which, []).append(window)
        if which not in self._taking:
            self._taking[which] = asyncio.ensure_future(self._take_for_all(which))
        return await window

    async def look(self, name: str, limit: int, who: str) -> Window:
        """How much is left, without taking any."""
        return await self._ask(name, limit, who, 0, alone=False)

    async def close(self) -> None:
        """Close the connections. Who still waits is a request that was given up."""
        for task in self._taking.values():
            task.cancel()
        await self._connections.disconnect()

    async def _take_for_all(self, which: _Which) -> None:
        """Count one request for each who waits, until nobody does."""
        while windows := self._waiting.pop(which, None):
            try:
                found = await self._take_together(which, len(windows))
            except Exception as error:  # task boundary: the requests get it
                for window in windows:
                    if not window.done():
                        window.set_exception(error)
                continue
            for window, one in zip(windows, found, strict=True):
                if not window.done():  # a request that was given up
                    window.set_result(one)
        del self._taking[which]

    async def _take_together(self, which: _Which, count: int) -> list[Window]:
        whole = await self._ask(*which, count, alone=False)
        if whole.allowed or count == 1:
            return [replace(whole, remaining=whole.remaining + later) for later in reversed(range(count))]
        found: list[Window] = []  # fewer than that are left: some get them, from where none is left all are refused
        while len(found) < count:
            found.append(await self._ask(*which, 1, alone=False))
            if not found[-1].allowed:
                found += [found[-1]] * (count - len(found))
        return found

    async def _ask(self, name: str, limit: int, who: str, cost: int, *, alone: bool) -> Window:
        if not alone and time.monotonic() >= self._away_until:
            try:
                window = await _asked(self._shared, name, limit, who, cost)
            except StorageError as error:
                if not self._away_until:
                    _log.warning("rates.alone", error=str(error.storage_error))
                self._away_until = time.monotonic() + _AWAY_S
            else:
                if self._away_until:
                    self._away_until = 0.0
                    _log.info("rates.shared")
                return window
        if self._own is None:
            self._own = MovingWindowRateLimiter(MemoryStorage())
        return await _asked(self._own, name, limit, who, cost)


async def _asked(limiter: MovingWindowRateLimiter, name: str, limit: int, who: str, cost: int) -> Window:
    item = RateLimitItemPerMinute(limit)
    allowed = await limiter.hit(item, name, who, cost=cost) if cost else True
    stats = await limiter.get_window_stats(item, name, who)
    return Window(allowed, limit, max(stats.remaining, 0), max(stats.reset_time - time.time(), 0.0))


async def charge_tokens(request: Request, tokens: int) -> None:
    """Count the tokens an inference request will take at most, and tell in its headers.

    Raises:
        RateLimited: so many are not left now.
        NeverFits: so many there never are.
    """
    exchange = exchange_of(request.scope)
    caller = exchange.caller
    limit = caller.limits.inference_tokens_per_minute if caller is not None else None
    if caller is None or limit is None:
        return
    rates: Rates = request.app.state.rates
    window = await rates.take("tokens", limit, caller.project_id or "", tokens)
    exchange.headers += window.headers("tokens")
    if tokens > limit:
        raise NeverFits(f"Request too large: {tokens} tokens, and the limit is {limit} a minute. Ask for fewer.")
    if not window.allowed:
        raise RateLimited(f"Rate limit reached: {limit} tokens a minute, {tokens} asked for.", window.reset_s, "tokens")


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: 120ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
