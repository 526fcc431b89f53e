"""From a submission to the start of its trainer's attempt, and how many jobs several workers start in a second."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from benchmarks.job_plane.fill import QUEUED, copy_jobs
from benchmarks.job_plane.plane import Plane, create_body
from benchmarks.job_plane.rows import Sizes, quantile, row
from jobs.doorbell import Doorbell
from jobs.resources import Bell
from jobs.states import TERMINAL
from jobs.tables import Job, Worker

WORKERS = 4
_PATIENCE_S = 120.0
_SETTLED_S = 0.15  # until a worker that has ended a job listens again


def latency(plane: Plane, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Submit jobs one by one to an idle worker."""
    plane.start_api()
    plane.start_workers(1)
    _await(lambda: _workers(plane) == 1, "the worker")
    created, started, answered = [], [], []
    with plane.http() as http:
        body = create_body(plane.upload(http))
        for number in range(sizes.submissions + 2):
            sent = time.time()
            job_id = http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
            took = time.time() - sent
            job = _ended(plane, [job_id])[0]
            time.sleep(_SETTLED_S)
            if number < 2:
                continue  # connections, caches
            created.append(1000 * (job.created_at - sent))
            started.append(1000 * (_time(job.started_at) - sent))
            answered.append(1000 * took)
    detail = f"{sizes.submissions} submissions, one at a time"
    share = 100 * sum(value < 150 for value in started) / len(started)
    return [
        row("submit_to_start_p50", kind, quantile(started, 0.5), "ms", "< 150", detail),
        row("submit_to_start_p99", kind, quantile(started, 0.99), "ms", None, f"{share:.0f} % under 150 ms"),
        row("... of it until the row is written, p50", kind, quantile(created, 0.5), "ms", None, "checks of the POST"),
        row(
            "... from the row to the start, p50",
            kind,
            quantile([end - begin for begin, end in zip(created, started, strict=True)], 0.5),
            "ms",
            None,
            "commit, doorbell, claim",
        ),
        row("the POST's own answer, p50", kind, quantile(answered, 0.5), "ms", None, "beside the start"),
    ]


def throughput(plane: Plane, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Let four workers loose on jobs that wait."""
    plane.start_api()
    with plane.http() as http:
        body = create_body(plane.upload(http))
        template = http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
    plane.start_workers(WORKERS)
    _await(lambda: _workers(plane) == WORKERS, "the workers")
    _ended(plane, [template])
    _run(plane, copy_jobs(plane.database, template, 2 * WORKERS, **QUEUED))  # all are up, connections made
    jobs = _run(plane, copy_jobs(plane.database, template, sizes.queued, **QUEUED))
    starts = sorted(_time(job.started_at) for job in jobs)
    rate = (len(starts) - 1) / (starts[-1] - starts[0])
    lost = sum(job.state != "succeeded" for job in jobs)
    detail = f"{len(jobs)} whole attempts by {WORKERS} workers, {lost} not succeeded"
    return [row("jobs_started_per_s", kind, rate, "1/s", None, detail), _claims(plane, kind, template, sizes)]


def _claims(plane: Plane, kind: str, template: str, sizes: Sizes) -> dict[str, Any]:
    """Claims alone: four processes that take a job and end it at once."""
    for part in plane.workers:
        part.terminate()
    for part in plane.workers:
        part.wait(30)
    copy_jobs(plane.database, template, sizes.claims, **QUEUED)
    command = [sys.executable, "-m", "benchmarks.job_plane.claimer"]
    url = plane.settings.database_url
    claimers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    for process in claimers:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{url}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for process in claimers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [int(process.communicate(timeout=_PATIENCE_S)[0]) for process in claimers]
    seconds = time.monotonic() - began
    if sum(taken) != sizes.claims:
        raise RuntimeError(f"{sizes.claims} jobs were claimed {sum(taken)} times")
    detail = f"claim_next and the end of the job, {WORKERS} processes, {sizes.claims} jobs waiting at first"
    return row("claims_per_s", kind, sum(taken) / seconds, "1/s", None, detail)


def _run(plane: Plane, ids: Sequence[str]) -> Sequence[Job]:
    """Ring for jobs and wait for their end."""
    bell = Doorbell(plane.settings.redis_url.get_secret_value())
    for job_id in ids[:WORKERS]:  # each worker goes on until none is left
        bell.ring(Bell(job_id))
    jobs = _ended(plane, ids)
    bell.close()
    return jobs


def _ended(plane: Plane, ids: Sequence[str]) -> Sequence[Job]:
    """The jobs once all have ended."""
    first, last = min(ids), max(ids)
    alive = sa.select(sa.func.count()).where(Job.id.between(first, last), Job.state.not_in(TERMINAL))

    def ended() -> bool:
        with plane.database.read() as session:
            return session.scalar(alive) == 0

    _await(ended, "the end of the jobs", pause_s=0.02 if len(ids) == 1 else 0.2)
    with plane.database.read() as session:
        return session.scalars(sa.select(Job).where(Job.id.between(first, last)).order_by(Job.id)).all()


def _workers(plane: Plane) -> int:
    with plane.database.read() as session:
        return session.scalars(sa.select(sa.func.count()).select_from(Worker)).one()


def _await(check: Callable[[], bool], what: str, pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not check():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_PATIENCE_S:.0f} s in vain for {what}")
        time.sleep(pause_s)


def _time(value: float | None) -> float:
    assert value is not None, "the job was never started"
    return value
