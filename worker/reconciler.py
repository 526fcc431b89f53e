"""Puts right what messages and processes lost, in rounds of idempotent duties.

Rings for jobs that wait, takes jobs from workers that are gone, ends those whose time is over, forgets old workers,
removes the folders of attempts that are over; beside that, each in a thread of its own because a slow receiver or store
must not delay a reaping, delivers webhooks and sweeps up orphans. It runs in every worker and as
`python -m worker.reconciler`; any number of them may run. A duty that fails does not keep the others from their turn.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence

import structlog

from bgpo import __version__
from jobs.log import configure_logging
from jobs.repositories import attempts, jobs, workers
from jobs.services import quotas
from jobs.services.sweep import sweep
from jobs.services.webhooks import deliver_due
from jobs.settings import Settings
from worker import workdir
from worker.context import WorkerContext
from worker.gpus import CPU, Accelerators
from worker.outages import DATABASE_OUTAGE
from worker.ringing import ring

_FORGET_WORKERS_S = 24 * 3600
_JOIN_S = 10.0  # then it hangs in the database or in a receiver; nothing it does is lost
_log = structlog.get_logger(__name__)

Duty = Callable[[WorkerContext], object]


def reap(context: WorkerContext) -> None:
    """Take jobs from workers that are gone."""
    with context.database.transaction() as session:
        reaped = jobs.reap(session, context.settings.reap_after_s)
    if reaped:
        _log.warning("jobs taken from lost workers", job_ids=reaped)


def expire(context: WorkerContext) -> None:
    """End jobs whose time, running or waiting, is over."""
    with context.database.transaction() as session:
        expired = jobs.expire(session, context.settings.max_queue_age_s)
    if expired:
        _log.warning("jobs ended at their deadline", job_ids=expired)


def hold_budgets(context: WorkerContext) -> None:
    """Pause the jobs of projects that have used what they may in this month."""
    with context.database.transaction() as session:
        paused = quotas.hold_budgets(session)
    if paused:
        _log.warning("jobs paused beyond a budget", job_ids=paused)


def ring_again(context: WorkerContext) -> None:
    """Ring for jobs whose doorbell was lost, or whose time has come."""
    with context.database.read() as session:
        waiting = jobs.to_ring(session)
    ring(context, waiting)


def forget_workers(context: WorkerContext) -> None:
    """Drop workers from the registry that were not seen for a day."""
    with context.database.transaction() as session:
        workers.forget(session, unseen_for_s=_FORGET_WORKERS_S)


def tidy(context: WorkerContext) -> None:
    """Remove what workers that died have left on this machine."""
    for job_id, epoch in workdir.leftovers(context.settings):
        with context.database.read() as session:
            attempt = next((row for row in attempts.of_job(session, job_id) if row.epoch == epoch), None)
        if attempt is not None and attempt.ended_at is not None:
            workdir.remove(context.settings, job_id, epoch)


def beat(context: WorkerContext) -> None:
    """Report this worker alive, and what it does."""
    activity = context.activity
    state: workers.WorkerState = "unfit" if activity.problem else "idle"
    if activity.job_id is not None:
        state = "busy"
    if context.draining.is_set():
        state = "draining"
    with context.database.transaction() as session:
        workers.beat(
            session,
            context.slot,
            pid=os.getpid(),
            device=context.settings.trainer_device,
            version=__version__,
            state=state,
            job_id=activity.job_id,
            problem=activity.problem,
        )


ROUND: tuple[Duty, ...] = (reap, expire, hold_budgets, ring_again, forget_workers, tidy)


def reconcile(context: WorkerContext, duties: Sequence[Duty] = ROUND) -> None:
    """One round."""
    for duty in duties:
        try:
            duty(context)
        except DATABASE_OUTAGE as error:
            _log.warning("duty postponed: the database does not answer", duty=duty.__name__, error=str(error))
        except Exception:  # thread boundary: a duty that fails must not be the last one
            _log.exception("duty failed", duty=duty.__name__)


def _deliver(context: WorkerContext) -> None:
    deliver_due(context.settings, context.database)


def _sweep(context: WorkerContext) -> None:
    sweep(context.settings, context.database, context.store)


class Reconciler:
    """Rounds until stopped. As part of a worker it also reports that worker alive."""

    def __init__(self, context: WorkerContext, *, is_worker: bool) -> None:
        settings = context.settings
        duties = (beat, *ROUND) if is_worker else ROUND
        plan = (("reconciler", settings.reconcile_s, duties),)
        beside = (("webhooks", settings.reconcile_s, (_deliver,)), ("sweep", settings.sweep_s, (_sweep,)))
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._rounds, args=(context, every_s, duties), name=name, daemon=True)
            for name, every_s, duties in (*plan, *beside)
        ]

    def start(self) -> None:
        """Begin with a round at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the rounds in progress."""
        self._stopped.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until stopped, then a little for the rounds in progress."""
        self._stopped.wait(timeout_s)
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _rounds(self, context: WorkerContext, every_s: float, duties: Sequence[Duty]) -> None:
        while not self._stopped.is_set():
            reconcile(context, duties)
            self._stopped.wait(every_s)


def main() -> None:
    """`python -m worker.reconciler`: rounds until SIGTERM or SIGINT."""
    settings = Settings()
    configure_logging(settings)
    reconciler = Reconciler(WorkerContext.create(settings, Accelerators(CPU, ())), is_worker=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reconciler.stop())
    reconciler.start()
    reconciler.join()


if __name__ == "__main__":
    main()
