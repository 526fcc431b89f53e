"""What /metrics tells Prometheus: requests of this API process, and the state of the whole service from the database.

Workers listen to nobody, so they have no metrics of their own: what they and their trainers do is in the database
(registry, attempts, metrics), and any API process tells it. With several API processes each tells the same about the
service; take one of them, or `max by`. Requests are counted by the template of their route, never by path, so that no
client can make new series; the one label with ids is that of jobs that run now, of which there are as many as workers.

The database is read at a scrape, within its usual time limits. If it does not answer, `bgpo_database_up` is 0 and its
part is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from jobs.db import Database
from jobs.repositories import census
from jobs.repositories.census import PHASES, Census, Running

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_log = structlog.get_logger(__name__)


class Metrics:
    """Of one API process."""

    def __init__(self, database: Database) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "bgpo_requests", "Answered requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "bgpo_request_seconds",
            "From the head of a request to the end of its answer, without streams.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._in_flight = Gauge("bgpo_requests_in_flight", "Requests being answered.", registry=self._registry)
        self.streams = Gauge("bgpo_event_streams", "Open streams of server-sent events.", registry=self._registry)
        self._registry.register(_Service(database))

    @contextmanager
    def request(self) -> Iterator[None]:
        """While a request is answered."""
        with self._in_flight.track_inprogress():
            yield

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if not route.endswith("/stream"):
            self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)


class _Service:
    """Reads pool and database at each scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield from _pool(self._database)
        began, found = time.monotonic(), None
        try:
            with self._database.read() as session:
                found = census.take(session)
        except SQLAlchemyError as error:
            _log.warning("metrics.unread", error=str(error))
        yield GaugeMetricFamily(
            "bgpo_database_up", "Whether the database answered this scrape.", int(found is not None)
        )
        yield GaugeMetricFamily(
            "bgpo_database_read_seconds", "How long reading all this took.", time.monotonic() - began
        )
        if found is not None:
            yield from _families(found)


def _pool(database: Database) -> Iterator[Metric]:
    pool = database.engine.pool
    family = GaugeMetricFamily("bgpo_database_connections", "Of this process's pool.", labels=["state"])
    if isinstance(pool, QueuePool):
        family.add_metric(["in_use"], pool.checkedout())
        family.add_metric(["idle"], pool.checkedin())
    yield family


def _families(found: Census) -> Iterator[Metric]:
    yield _by("bgpo_jobs", "Jobs by state; finished ones as long as they are kept.", ["state"], found.jobs)
    yield _by("bgpo_queue_jobs", "Queued jobs by what they ask for.", ["gpu_type", "gpus", "priority"], found.queued)
    yield GaugeMetricFamily(
        "bgpo_queue_oldest_seconds", "How long the job that waits longest has waited.", found.oldest_queued_s
    )
    yield _by("bgpo_workers", "Workers seen lately.", ["gpu_type", "state"], found.workers)
    yield GaugeMetricFamily("bgpo_workers_gone", "Workers not seen lately but not forgotten.", found.workers_gone)
    yield _by("bgpo_attempts", "Attempts of the last day, by how they ended.", ["outcome", "error"], found.attempts)
    yield from _trainers(found.running)
    yield _by("bgpo_webhook_deliveries", "Webhooks by state.", ["state"], found.webhooks)


def _trainers(running: Iterable[Running]) -> Iterator[Metric]:
    ids = ["job_id", "project_id"]
    steps = GaugeMetricFamily("bgpo_running_job_step", "Step of a job that runs.", labels=ids)
    total = GaugeMetricFamily("bgpo_running_job_steps", "Steps it has to do.", labels=ids)
    seconds = GaugeMetricFamily(
        "bgpo_running_job_phase_seconds", "Of its last training step, by what took them.", labels=[*ids, "phase"]
    )
    measured = {
        "reward_mean": GaugeMetricFamily("bgpo_running_job_reward", "Mean of its last training step.", labels=ids),
        "tokens_per_second": GaugeMetricFamily(
            "bgpo_running_job_tokens_per_second", "Generated in its last rollout.", labels=ids
        ),
        "peak_memory_bytes": GaugeMetricFamily(
            "bgpo_running_job_memory_bytes", "Most of an accelerator's memory so far, of the fullest one.", labels=ids
        ),
    }
    for job in running:
        labels = [job.id, job.project_id]
        steps.add_metric(labels, job.step)
        total.add_metric(labels, job.steps)
        for phase in PHASES:
            if (value := job.measured.get(f"seconds_{phase}")) is not None:
                seconds.add_metric([*labels, phase], value)
        for name, family in measured.items():
            if name in job.measured:
                family.add_metric(labels, job.measured[name])
    yield from (steps, total, seconds, *measured.values())


def _by(name: str, text: str, labels: list[str], counts: dict[tuple[str, ...], int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
