"""Tells workers that a job may be ready: a Celery message with nothing but the job's id.

Called after commit, and allowed to fail: the jobs table is the outbox, and the reconciler rings again. Only produces;
`worker` has the Celery app that consumes.
"""

from __future__ import annotations

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from jobs.resources import Bell

RUN_JOB = "bgpo.run_job"
_CONNECT_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class Doorbell:
    """Rings over Redis."""

    def __init__(self, redis_url: str) -> None:
        self._celery = Celery("bgpo", broker=redis_url, set_as_current=False)
        self._celery.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            broker_connection_timeout=_CONNECT_TIMEOUT_S,
            broker_transport_options={
                "socket_connect_timeout": _CONNECT_TIMEOUT_S,
                "socket_timeout": _CONNECT_TIMEOUT_S,
                "max_retries": 1,  # a request waits for this; the reconciler has more time
                "interval_start": 0,
                "interval_step": 0,
            },
        )

    def ring(self, bell: Bell) -> bool:
        """Announce a job to the workers of its class; False (and a log line) when the broker cannot be reached."""
        try:
            self._celery.send_task(RUN_JOB, [bell.job_id], queue=bell.queue, retry=False, ignore_result=True)
        except OperationalError as error:
            log.warning("doorbell.failed", job_id=bell.job_id, error=str(error))
            return False
        return True

    def close(self) -> None:
        """Close pooled connections."""
        self._celery.close()

    def check(self) -> None:
        """Raise OSError when the broker cannot be reached."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=_CONNECT_TIMEOUT_S)
        except OperationalError as error:
            raise ConnectionError(str(error)) from error
