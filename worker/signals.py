"""How a worker is told to stop, from its first moment on: SIGTERM, SIGINT, SIGHUP and SIGQUIT all drain it.

A running trainer writes a checkpoint, its job goes back to the queue, and the process exits, within a bounded time
whatever hangs. Further signals change nothing. Celery would kill its task on the second SIGINT and start itself anew on
SIGHUP, so its handlers are replaced as soon as it has installed them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.worker import state

from worker.context import WorkerContext
from worker.watch import TERM_GRACE_S

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_CELERY_EXIT_S = 5.0
_SETTLE_S = 30.0
_log = structlog.get_logger(__name__)


def drain_on_signals(app: Celery, context: WorkerContext) -> None:
    """Install the handlers, now and again when Celery has installed its own, and see to it that the process ends."""

    def handle(number: int, frame: object) -> None:
        state.should_stop = os.EX_OK  # Celery looks at it between messages
        context.draining.set()

    class Handlers(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        """Starts after Celery has installed its own handlers, and before it waits for messages."""

        def start(self, worker: Any) -> None:
            install()

    def install() -> None:
        for number in _SIGNALS:
            signal.signal(number, handle)

    install()
    app.steps["worker"].add(Handlers)
    threading.Thread(target=_leave, args=(context,), name="leave", daemon=True).start()


def ignore_signals() -> None:
    """The process is on its way out already."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave(context: WorkerContext) -> None:
    """End the process when Celery does not: told to stop while its broker is out of reach, it may wait for ever."""
    context.draining.wait()
    limit = context.settings.stop_grace_s * 2 + TERM_GRACE_S + _SETTLE_S
    idle = context.busy.acquire(timeout=limit)
    if idle:
        time.sleep(_CELERY_EXIT_S)
    os._exit(os.EX_OK if idle else os.EX_SOFTWARE)
