"""Ringing for jobs and remembering it."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from jobs.repositories import jobs
from jobs.resources import Bell
from worker.context import WorkerContext
from worker.outages import DATABASE_OUTAGE

_log = structlog.get_logger(__name__)


def ring(context: WorkerContext, bells: Sequence[Bell]) -> None:
    """Ring for jobs. Outside any transaction: the broker may take its time."""
    rung = [bell for bell in bells if context.doorbell.ring(bell)]
    if not rung:
        return
    try:
        with context.database.transaction() as session:
            jobs.mark_rung(session, rung)
    except DATABASE_OUTAGE as error:  # they will be rung for once more, which costs nothing
        _log.warning("rung, but not noted", error=str(error))
