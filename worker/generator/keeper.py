"""What a generator does beside answering, in a thread of its own: it says that it lives, keeps its claims, tidies up.

Any generator also takes completions from others that are gone, and ends those whose time is over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Sequence

import structlog

from bgpo import __version__
from jobs.context import Context
from jobs.repositories import completions, generators
from worker.outages import DATABASE_OUTAGE

LEASE_S = 20.0
_LOOK_S = 0.5
_BEAT_S = 3.0
_TIDY_S = 30.0
_FORGET_S = 3600.0
_JOIN_S = 5.0
_log = structlog.get_logger(__name__)


class Keeper(threading.Thread):
    """Start it, `hold` what is being answered, look at `lost`."""

    def __init__(self, ctx: Context, generator_id: str) -> None:
        super().__init__(name="keeper", daemon=True)
        self._ctx, self._id = ctx, generator_id
        self._stopped = threading.Event()
        self._held: frozenset[str] = frozenset()
        self._lost: frozenset[str] = frozenset()
        self._beaten = self._tidied = float("-inf")
        self.models: Sequence[str] = ()
        """Those in memory."""

    def hold(self, ids: Collection[str]) -> None:
        """Renew the leases of these from now on, and of no others."""
        self._held, self._lost = frozenset(ids), frozenset()

    @property
    def lost(self) -> frozenset[str]:
        """Those held that are not ours any more: cancelled, too late, or taken."""
        return self._lost

    def stop(self) -> None:
        """End, and say that this generator is gone."""
        self._stopped.set()
        self.join(_JOIN_S)
        try:
            with self._ctx.db.transaction() as session:
                generators.remove(session, self._id)
        except DATABASE_OUTAGE as error:  # it is not seen any more, which says the same a little later
            _log.warning("the end was not noted", error=str(error))

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._round()
            except DATABASE_OUTAGE as error:
                _log.warning("the database does not answer", error=str(error))
            except Exception:  # thread boundary: a round that fails must not be the last one
                _log.exception("round failed")
            self._stopped.wait(_LOOK_S)

    def beat(self) -> None:
        """Say that this generator lives."""
        with self._ctx.db.transaction() as session:
            generators.beat(
                session,
                self._id,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self._ctx.settings.generator_device,
                version=__version__,
                models=self.models,
            )

    def _round(self) -> None:
        now = time.monotonic()
        if now - self._beaten > _BEAT_S:
            self.beat()
            self._beaten = now
        held = self._held
        with self._ctx.db.transaction() as session:
            ours = completions.renew(session, self._id, held, LEASE_S) if held else set()
            if self._held is held:
                self._lost = held - ours
            completions.expire(session)
            taken = completions.reap(session)
        if taken:
            _log.warning("completions taken from lost generators", ids=taken)
        if now - self._tidied > _TIDY_S:
            self._tidied = now
            with self._ctx.db.transaction() as session:
                completions.forget(session, self._ctx.settings.completion_keep_s)
                generators.forget(session, unseen_for_s=_FORGET_S)
