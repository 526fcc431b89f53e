"""Ringing for a job that was queued: noted in the transaction that queues it, rung after that has committed.

In this order because a worker that hears the bell passes over a row somebody has locked, so noting it afterwards would
make the worker miss the very job it was rung for.
"""

from __future__ import annotations

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.repositories.jobs import mark_rung
from jobs.resources import Bell
from jobs.tables import Job

_log = structlog.get_logger(__name__)


def note(session: Session, job: Job) -> None:
    """In the transaction: it will be rung for."""
    mark_rung(session, [_bell(job)])


def ring(ctx: Context, job: Job) -> None:
    """After it: tell a worker. One that hears nothing looks by itself before long: the row is the outbox."""
    if ctx.doorbell.ring(_bell(job)):
        return
    try:
        with ctx.db.transaction() as session:
            mark_rung(session, [_bell(job)], rung=False)
    except (OperationalError, InterfaceError) as error:  # the request has succeeded; the reconciler rings later
        _log.warning("a ring that failed was not noted", job_id=job.id, error=str(error))


def _bell(job: Job) -> Bell:
    return Bell(job.id, job.gpus, job.gpu_type)
