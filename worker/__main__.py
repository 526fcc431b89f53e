"""`python -m worker`: a Celery worker that runs one job at a time, and a reconciler thread beside it.

SIGTERM drains: the running trainer writes a checkpoint, its job goes back to the queue, and the worker exits.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery.signals import worker_shutting_down

from jobs.log import configure_logging
from jobs.resources import queue_names
from jobs.settings import Settings
from worker.app import create_app
from worker.context import WorkerContext
from worker.reconciler import Reconciler
from worker.tasks import register

_CELERY_EXIT_S = 10.0


def main() -> None:
    """Run until told to stop."""
    settings = Settings()
    configure_logging(settings)
    context = WorkerContext.create(settings)
    app = create_app(settings)
    register(app, context)

    def drain(**_: Any) -> None:
        context.draining.set()
        threading.Thread(target=_leave, args=(context,), name="leave", daemon=True).start()

    worker_shutting_down.connect(drain, weak=False)
    reconciler = Reconciler(context, is_worker=True)
    reconciler.start()
    try:
        app.worker_main(
            [
                "worker",
                "--pool=threads",
                "--concurrency=1",
                "--without-gossip",  # workers learn of each other from the database
                "--without-mingle",
                f"--hostname={context.worker_id}",
                f"--queues={','.join(queue_names(context.slot))}",
                f"--loglevel={settings.log_level}",
            ]
        )
    finally:
        reconciler.stop()
        reconciler.join()
        context.close()


def _leave(context: WorkerContext) -> None:
    """End the process when Celery does not: told to stop while its broker is out of reach, it may wait for ever.

    Once no job runs nothing is left to lose: the database has the state, and Celery's messages are doorbells.
    """
    with context.busy:
        time.sleep(_CELERY_EXIT_S)
        os._exit(0)


if __name__ == "__main__":
    main()
