"""The one task: `bgpo.run_job(job_id)`. The id is for logs only: what is next is in the database."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.worker import state
from kombu.asynchronous import get_event_loop

from jobs.doorbell import RUN_JOB
from worker.answering import answer
from worker.context import WorkerContext

_LOOK_S, _LOOKS = 0.01, 100


def register(app: Celery, context: WorkerContext) -> None:
    """Let `app` answer doorbells."""

    def hear(job_id: str) -> None:
        with context.busy:  # a doorbell heard while the standby runs a job waits: nobody else should be told to
            answer(context)
        hub: Any = get_event_loop()
        if hub is not None:
            hub.call_soon(_listen_again, hub, _LOOKS)

    app.task(hear, name=RUN_JOB, ignore_result=True)


def _listen_again(hub: Any, looks: int) -> None:
    """In Celery's loop: go round until the task that has just ended counts as ended.

    The loop takes no message while a task runs, nothing tells it that one has ended, and by itself it looks once a
    second: so long would the next doorbell go unheard.
    """
    if state.reserved_requests and looks > 0:
        hub.call_later(_LOOK_S, _listen_again, hub, looks - 1)
