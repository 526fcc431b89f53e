"""`python -m worker`: a Celery worker that runs one job at a time, with a standby and a reconciler beside it.

SIGTERM drains (`worker.signals`): the running trainer writes a checkpoint, its job goes back to the queue, and the
worker exits.
"""

from __future__ import annotations

import sys

from jobs import tracing
from jobs.log import configure_logging
from jobs.resources import queue_names
from jobs.settings import Settings
from worker.app import create_app
from worker.context import WorkerContext
from worker.gpus import GpuError
from worker.reconciler import Reconciler
from worker.sandbox import SandboxCheck
from worker.signals import drain_on_signals, ignore_signals
from worker.standby import Standby
from worker.tasks import register


def main() -> None:
    """Run until told to stop."""
    settings = Settings()
    configure_logging(settings)
    tracing.configure(settings, "bgpo-worker")
    try:
        context = WorkerContext.create(settings)
    except GpuError as error:
        sys.exit(f"the worker cannot start: {error}")
    app = create_app(settings)
    register(app, context)
    drain_on_signals(app, context)
    SandboxCheck().start()
    reconciler, standby = Reconciler(context, is_worker=True), Standby(context)
    reconciler.start()
    standby.start()
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
        ignore_signals()
        context.draining.set()  # however Celery came to its end
        standby.join()
        reconciler.stop()
        reconciler.join()
        context.close()
        tracing.stop()


if __name__ == "__main__":
    main()
