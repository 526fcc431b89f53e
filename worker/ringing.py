"""Ringing for jobs and remembering it."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.repositories import jobs
from jobs.resources import Bell
from worker.context import WorkerContext


def ring(context: WorkerContext, bells: Sequence[Bell]) -> None:
    """Ring for jobs. Outside any transaction: the broker may take its time."""
    rung = [bell for bell in bells if context.doorbell.ring(bell)]
    if rung:
        with context.database.transaction() as session:
            jobs.mark_rung(session, rung)
