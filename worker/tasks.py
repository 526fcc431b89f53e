"""The one task: `bgpo.run_job(job_id)`."""

from __future__ import annotations

from celery import Celery

from jobs.doorbell import RUN_JOB
from worker.context import WorkerContext
from worker.supervisor import run_job


def register(app: Celery, context: WorkerContext) -> None:
    """Let `app` answer doorbells."""

    def answer(job_id: str) -> None:
        with context.busy:
            run_job(context, job_id)

    app.task(answer, name=RUN_JOB, ignore_result=True)
