"""Ringing for a job after its transaction has committed."""

from __future__ import annotations

from jobs.context import Context
from jobs.repositories.jobs import mark_rung
from jobs.resources import Bell
from jobs.tables import Job


def ring(ctx: Context, job: Job) -> None:
    """Tell a worker. One that hears nothing is told by the reconciler: the row is the outbox."""
    bell = Bell(job.id, job.gpus, job.gpu_type)
    if ctx.doorbell.ring(bell):
        with ctx.db.transaction() as session:
            mark_rung(session, [bell])
