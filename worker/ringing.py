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
    """Ring for jobs. Outside any transaction: the broker may take its time.

    A broker that does not answer for one is not asked for the others: each time out would delay the caller's round.
    """
    if not bells:
        return
    _note(context, bells, rung=True)
    for number, bell in enumerate(bells):
        if not context.doorbell.ring(bell):
            _note(context, bells[number:], rung=False)
            return


def _note(context: WorkerContext, bells: Sequence[Bell], *, rung: bool) -> None:
    try:
        with context.database.transaction() as session:
            jobs.mark_rung(session, bells, rung=rung)
    except DATABASE_OUTAGE as error:  # they will be rung for once more, which costs nothing, or half a minute later
        _log.warning("ring not noted", error=str(error))
