"""Whose a stored key is, remembered for a few seconds, because clients poll many times a second.

So a key that is revoked, or whose project is archived, may be accepted for `key_cache_s` longer by each API process.
Expiry needs no looking: the time is remembered with the key. Keys that were refused are not remembered; an address that
sends too many of them waits (`api.rates`), and meanwhile only keys that are remembered pass from there. They are
remembered by their SHA-256: no key is kept, and a lookup by it tells nothing in its time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.exchange import Caller
from api.rates import Rates
from jobs import keys as text
from jobs.context import Context
from jobs.errors import RateLimited, Unauthorized, Unavailable
from jobs.limits import ProjectLimits
from jobs.repositories import projects
from jobs.repositories.keys import Found
from jobs.scopes import expand
from jobs.services import keys
from jobs.tables import DEFAULT_PROJECT

_KEPT_KEYS = 4096
_WRONG = "Incorrect API key provided."
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Kept:
    """A key that was found good, and what it opens."""

    found: Found
    caller: Caller
    at: float
    """When, on this process's clock."""


class Keyring:
    """One per process; call from the event loop."""

    def __init__(self, ctx: Context, rates: Rates) -> None:
        self._ctx, self._rates = ctx, rates
        self._pepper = keys.pepper(ctx.settings)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Found | None]] = {}
        self._limits = ProjectLimits().over(ctx.settings)
        self._limits_until = 0.0

    async def caller(self, given: str, ip: str | None) -> Caller:
        """Whose key this is. Raises Unauthorized, RateLimited, Unavailable."""
        fingerprint = hashlib.sha256(given.encode()).digest()
        kept, now = self._kept.get(fingerprint), time.monotonic()
        if kept is None or now - kept.at >= self._ctx.settings.key_cache_s:
            await self.require_patience(ip)
            kept = await self._look(given, fingerprint)
        if kept is None:
            await self.refused(ip)
            raise Unauthorized(_WRONG)
        _require_valid(kept.found, now - kept.at)
        return kept.caller

    async def default_limits(self) -> ProjectLimits:
        """Those of the project that keys of the settings open; the last known ones while the database fails."""
        if time.monotonic() >= self._limits_until:
            self._limits_until = time.monotonic() + self._ctx.settings.key_cache_s
            try:
                self._limits = await run_in_threadpool(self._read_limits)
            except SQLAlchemyError as error:
                _log.warning("limits.unread", error=str(error))
        return self._limits

    async def require_patience(self, ip: str | None) -> None:
        """Raises RateLimited when too many keys from this address were refused."""
        limit = self._ctx.settings.auth_failures_per_minute
        window = await self._rates.look("auth", limit, ip or "unknown")
        if window.remaining <= 0:
            raise RateLimited("Too many wrong API keys came from your address.", window.reset_s)

    async def refused(self, ip: str | None) -> None:
        """Count a key that was refused."""
        await self._rates.take("auth", self._ctx.settings.auth_failures_per_minute, ip or "unknown")

    async def _look(self, given: str, fingerprint: bytes) -> _Kept | None:
        key = text.parse(given)
        if key is None:
            return None
        task = self._asking.get(fingerprint)
        if task is None:
            digest = text.digest(self._pepper, key)
            task = asyncio.ensure_future(run_in_threadpool(keys.check, self._ctx.db, key, digest))
            self._asking[fingerprint] = task
            task.add_done_callback(lambda _: self._asking.pop(fingerprint, None))
        began = time.monotonic()
        try:
            found = await asyncio.shield(task)  # others wait for it, too
        except SQLAlchemyError as error:
            _log.warning("key.unread", error=str(error))
            raise Unavailable("API keys cannot be checked at the moment.") from error
        self._kept.pop(fingerprint, None)
        if found is None:
            return None
        kept = self._kept[fingerprint] = _Kept(found, self._caller(found), began)
        if len(self._kept) > _KEPT_KEYS:
            self._kept.popitem(last=False)
        return kept

    def _caller(self, found: Found) -> Caller:
        return Caller(
            organization_id=found.organization_id,
            key_id=found.id,
            project_id=found.project_id,
            scopes=frozenset(expand(found.scopes)),  # a stored key may be older than a scope that its own imply
            admin=found.project_id is None,
            limits=ProjectLimits.stored(found.limits).over(self._ctx.settings),
        )

    def _read_limits(self) -> ProjectLimits:
        with self._ctx.db.read() as session:
            return projects.limits(session, DEFAULT_PROJECT).over(self._ctx.settings)


def _require_valid(found: Found, age_s: float) -> None:
    """Raises Unauthorized. Whoever gets the reason has shown the whole key."""
    if found.revoked:
        raise Unauthorized("This API key was revoked.", code="api_key_revoked")
    if found.expires_at is not None and found.expires_at <= found.read_at + age_s:
        raise Unauthorized("This API key has expired.", code="api_key_expired")
    if found.archived:
        raise Unauthorized("The project of this API key is archived.", code="project_archived")
