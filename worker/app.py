"""The Celery side of a worker. A message is a doorbell carrying a job id; all state is in the database.

Hence early acknowledgement (redelivery would start endless copies of an hours-long task; the lease and the reconciler
recover instead), no results, no time limits, no prefetch, and one task at a time in a thread: a thread can be told to
drain, and the trainer is a process of its own anyway. docs/architecture.md has the reasons.
"""

from __future__ import annotations

from celery import Celery

from jobs.settings import Settings


def create_app(settings: Settings) -> Celery:
    """The Celery application of a worker process, without tasks."""
    app = Celery("bgpo", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of the broker
        broker_transport_options={"socket_connect_timeout": 5, "socket_timeout": 30, "socket_keepalive": True},
    )
    return app
