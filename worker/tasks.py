"""The one task: `bgpo.run_job(job_id)`. The id is for logs only: what is next is in the database."""

from __future__ import annotations

from celery import Celery

from jobs.doorbell import RUN_JOB
from worker.answering import answer
from worker.context import WorkerContext


def register(app: Celery, context: WorkerContext) -> None:
    """Let `app` answer doorbells."""

    def hear(job_id: str) -> None:
        with context.busy:  # a doorbell heard while the standby runs a job waits: nobody else should be told to
            answer(context)

    app.task(hear, name=RUN_JOB, ignore_result=True)
