"""Looks for jobs now and then, doorbell or not: so a worker works without Redis, and a lost doorbell costs seconds."""

from __future__ import annotations

import threading

import structlog

from worker.answering import answer
from worker.context import WorkerContext

_log = structlog.get_logger(__name__)


class Standby(threading.Thread):
    """Looks each `reconcile_s`, unless a job is running, until the worker drains."""

    def __init__(self, context: WorkerContext) -> None:
        super().__init__(name="standby", daemon=True)
        self._context = context

    def run(self) -> None:
        context = self._context
        while not context.draining.wait(context.settings.reconcile_s):
            if context.busy.acquire(blocking=False):
                try:
                    answer(context)
                except Exception:  # thread boundary: a look that fails must not be the last one
                    _log.exception("answering failed")
                finally:
                    context.busy.release()
