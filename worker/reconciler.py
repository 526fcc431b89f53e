"""Puts right what messages and processes lost: rings for jobs that wait, takes jobs from workers that are gone.

Idempotent SQL each few seconds, run as a thread of every worker and by `python -m worker.reconciler`; any number of
them may run. Not covered yet: deadlines, orphaned files.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

import structlog

from bgpo import __version__
from jobs.log import configure_logging
from jobs.repositories import jobs, workers
from jobs.resources import Bell
from jobs.settings import Settings
from worker.context import WorkerContext

_FORGET_WORKERS_S = 24 * 3600
_log = structlog.get_logger(__name__)


def ring(context: WorkerContext, bells: Sequence[Bell]) -> None:
    """Ring for jobs and remember it. Outside any transaction: the broker may take its time."""
    rung = [bell for bell in bells if context.doorbell.ring(bell)]
    if rung:
        with context.database.transaction() as session:
            jobs.mark_rung(session, rung)


def reconcile(context: WorkerContext) -> None:
    """One round."""
    with context.database.transaction() as session:
        reaped = jobs.reap(session, context.settings.reap_after_s)
        workers.forget(session, unseen_for_s=_FORGET_WORKERS_S)
    if reaped:
        _log.warning("jobs taken from lost workers", job_ids=reaped)
    with context.database.read() as session:
        waiting = jobs.to_ring(session)
    ring(context, waiting)


class Reconciler(threading.Thread):
    """Rounds until stopped. As part of a worker it also reports that worker alive."""

    def __init__(self, context: WorkerContext, *, is_worker: bool) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._context, self._is_worker = context, is_worker
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End after the round in progress."""
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self._is_worker:
                    self._beat()
                reconcile(self._context)
            except Exception:  # thread boundary: a round that fails must not be the last one
                _log.exception("reconciler round failed")
            self._stopped.wait(self._context.settings.reconcile_s)

    def _beat(self) -> None:
        context = self._context
        with context.database.transaction() as session:
            workers.beat(
                session,
                context.slot,
                pid=os.getpid(),
                device=context.settings.trainer_device,
                version=__version__,
            )


def main() -> None:
    """`python -m worker.reconciler`: rounds until SIGTERM or SIGINT."""
    settings = Settings()
    configure_logging(settings)
    reconciler = Reconciler(WorkerContext.create(settings), is_worker=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reconciler.stop())
    reconciler.start()
    reconciler.join()


if __name__ == "__main__":
    main()
