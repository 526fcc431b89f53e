"""Takes jobs while there are any: what a doorbell, or the standby's look every few seconds, leads to."""

from __future__ import annotations

import time

import structlog

from jobs import tracing
from jobs.repositories import jobs
from worker.context import WorkerContext
from worker.fitness import fit
from worker.outages import DATABASE_OUTAGE
from worker.supervisor import Supervisor
from worker.warden import now

_log = structlog.get_logger(__name__)


def answer(context: WorkerContext) -> None:
    """Run jobs until none is left for this worker, or it drains. The caller holds `context.busy`."""
    while run_next(context):
        pass


def run_next(context: WorkerContext) -> bool:
    """Run one attempt of the job that is next for this worker; False when there was nothing to do.

    The accelerators are locked before the claim: while a process that should be dead still has one, the job is better
    left to another worker.
    """
    if context.draining.is_set():
        return False
    with fit(context) as lock_fds:
        if lock_fds is None:
            return False
        claimed_at, began_ns = now(), time.time_ns()
        settings = context.settings
        try:
            with context.database.transaction() as session:
                claim = jobs.claim_next(session, context.slot, settings.lease_s, max_running=settings.max_running_jobs)
        except DATABASE_OUTAGE as error:
            _log.warning("no claim: the database does not answer", error=str(error))
            return False
        if claim is None:
            return False
        with (
            context.activity.on(claim.job_id),
            tracing.span("attempt", kind="CONSUMER", parent=claim.origin) as span,
        ):
            span.set(bgpo__job=claim.job_id, bgpo__attempt=claim.epoch, bgpo__worker=context.worker_id)
            tracing.past("claim", began_ns)
            outcome = Supervisor(context, claim, claimed_at, lock_fds).run()
            span.set(bgpo__outcome=outcome)
        return True
