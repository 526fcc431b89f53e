"""Status polls a second, beside a bare FastAPI route on the same machine, turn by turn."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks.job_plane.load import cpu_s, drive, get
from benchmarks.job_plane.plane import Plane, create_body
from benchmarks.job_plane.rows import Sizes, row
from jobs.context import Context
from jobs.limits import ProjectLimits
from jobs.repositories import jobs
from jobs.services import keys, projects
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT, Job

_CHANGES_PER_S = 10
_LIMITS = {"read_requests_per_minute": 1_000_000}
"""More than can be polled."""


@dataclass(frozen=True)
class Target:
    """A server process and what to ask it."""

    pid: int
    port: int
    request: bytes


@dataclass(frozen=True)
class Turn:
    """What one turn of load on a server gave."""

    rate: float
    cpu_us: float
    """CPU time of the server process for one request, in microseconds."""
    client_share: float
    """Of one core."""


def turn(target: Target, connections: int, seconds: float) -> Turn:
    """Load a server for a while."""
    before = cpu_s(target.pid)
    load = drive(target.port, target.request, connections=connections, seconds=seconds)
    spent = cpu_s(target.pid) - before
    return Turn(load.rate, 1e6 * spent / len(load.latencies_s), load.client_share)


def alternate(first: Target, second: Target, connections: int, sizes: Sizes) -> list[tuple[Turn, Turn]]:
    """Turns of one and the other, so that what else the machine does falls on both; one each before, uncounted."""
    for target in (first, second):
        turn(target, connections, 0.2 * sizes.slot_s)
    return [
        (turn(first, connections, sizes.slot_s), turn(second, connections, sizes.slot_s)) for _ in range(sizes.rounds)
    ]


def polls(plane: Plane, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Poll a running job, then one that changes while it is polled, then with a stored key and under a rate limit."""
    api = plane.start_api()
    bare, bare_port = plane.start_bare()
    job_id = running_job(plane)
    ours = Target(api, plane.port, get(f"/v1/fine_tuning/jobs/{job_id}"))
    bare_route = Target(bare, bare_port, get("/job"))
    rows: list[dict[str, Any]] = []
    for connections in sizes.connections:
        turns = alternate(bare_route, ours, connections, sizes)
        rows += _compared("polls_per_s", kind, connections, turns)
    with _changing(plane, job_id):
        turns = alternate(bare_route, ours, 8, sizes)
    rows += _compared(f"polls_per_s, job changing {_CHANGES_PER_S} times a second", kind, 8, turns)
    ctx = Context.open(plane.settings)
    try:
        for figure, limits in (("polls_per_s, stored key", {}), ("polls_per_s, stored key and rate limit", _LIMITS)):
            path = f"/v1/fine_tuning/jobs/{job_id}"
            of_key = Target(api, plane.port, get(path, key=_key(ctx, ProjectLimits(**limits))))
            rows += _compared(figure, kind, 8, alternate(bare_route, of_key, 8, sizes))
    finally:
        ctx.close()
    return rows


def _key(ctx: Context, limits: ProjectLimits) -> str:
    """A new key of the project, whose limits become these."""
    projects.set_limits(ctx, DEFAULT_ORGANIZATION, DEFAULT_PROJECT, limits)
    made = keys.create(
        ctx, DEFAULT_ORGANIZATION, DEFAULT_PROJECT, name="poll", scopes=["jobs:read"], expires_in_s=None, by=None
    )
    return made.value


def running_job(plane: Plane) -> str:
    """A job that a worker has, made over HTTP."""
    with plane.http() as http:
        body = create_body(plane.upload(http))
        job_id: str = http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
    with plane.database.transaction() as session:
        if jobs.claim(session, job_id, "benchmark", 3600) is None:
            raise RuntimeError("the job could not be claimed")
    return job_id


def _compared(figure: str, kind: str, connections: int, turns: list[tuple[Turn, Turn]]) -> list[dict[str, Any]]:
    def median(values: Iterator[float]) -> float:
        return statistics.median(list(values))

    rate = median(ours.rate for _, ours in turns)
    bare_rate = median(bare.rate for bare, _ in turns)
    cpu, bare_cpu = median(ours.cpu_us for _, ours in turns), median(bare.cpu_us for bare, _ in turns)
    ratio = median(ours.rate / bare.rate for bare, ours in turns)
    client = max(side.client_share for pair in turns for side in pair)
    at = f"{connections} at once"
    detail = f"{at}; bare route {bare_rate:.0f}; client at most {client:.2f} of a core"
    return [
        row(figure, kind, rate, "1/s", None, detail),
        row("... over the bare route's", kind, ratio, "ratio", ">= 0.5", f"{at}; median of {len(turns)} pairs"),
        row("... CPU of the API for a poll", kind, cpu, "us", None, f"{at}; bare route {bare_cpu:.0f}"),
    ]


@contextmanager
def _changing(plane: Plane, job_id: str) -> Iterator[None]:
    """Let the job make a step many times a second, as no real one does."""
    stop = threading.Event()
    statement = sa.update(Job).where(Job.id == job_id).values(last_step=Job.last_step + 1)

    def change() -> None:
        while not stop.wait(1 / _CHANGES_PER_S):
            with plane.database.transaction() as session:
                session.execute(statement)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
