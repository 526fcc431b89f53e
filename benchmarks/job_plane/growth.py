"""What a request costs when the table of jobs is large: a small and a large one side by side, turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.job_plane.fill import QUEUED, analyze, copy_jobs
from benchmarks.job_plane.load import get
from benchmarks.job_plane.plane import Databases, Plane
from benchmarks.job_plane.polls import Target, alternate, running_job
from benchmarks.job_plane.rows import Sizes, row
from jobs.db import Database, now
from jobs.repositories import jobs
from jobs.resources import Slot

_TARGET = "<= 1.5"
_WAITING = 20
"""Queued jobs of either table; the queue is short because workers empty it, however long the service has run."""
_LOOKS = 30


def growth(folder: Path, databases: Databases, redis_url: str, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Ratios of the large table's cost to the small one's."""
    with (
        Plane(folder / "few", databases.new(kind), redis_url) as few,
        Plane(folder / "many", databases.new(kind), redis_url) as many,
    ):
        small, large = (_filled(plane, count) for plane, count in ((few, sizes.few), (many, sizes.many)))
        said = f"{sizes.many:,} jobs against {sizes.few:,}"
        # One at a time, where all of the database's time is waited for.
        rows = [
            _requests("poll_cost_ratio", kind, small, large, "/v1/fine_tuning/jobs/{job}", sizes, said),
            _requests("first_page_cost_ratio", kind, small, large, "/v1/fine_tuning/jobs?limit=20", sizes, said),
        ]
        rounds = sizes.rounds
        rows.append(_calls("claim_next_cost_ratio", kind, few.database, many.database, _claim, rounds, said))
    return rows


def _filled(plane: Plane, count: int) -> tuple[Target, str]:
    api = plane.start_api()
    job_id = running_job(plane)
    copy_jobs(plane.database, job_id, count - _WAITING - 1, state="succeeded", finished_at=now())
    copy_jobs(plane.database, job_id, _WAITING, **QUEUED)
    analyze(plane.database)
    return Target(api, plane.port, b""), job_id


def _requests(
    figure: str,
    kind: str,
    small: tuple[Target, str],
    large: tuple[Target, str],
    path: str,
    sizes: Sizes,
    said: str,
) -> dict[str, Any]:
    few, many = (Target(target.pid, target.port, get(path.format(job=job_id))) for target, job_id in (small, large))
    turns = alternate(few, many, 1, sizes)
    ratio = statistics.median(a.rate / b.rate for a, b in turns)
    took = [1000 / statistics.median(side[i].rate for side in turns) for i in (0, 1)]
    return row(figure, kind, ratio, "ratio", _TARGET, f"{said}; {took[1]:.2f} ms against {took[0]:.2f} ms")


def _calls(
    figure: str,
    kind: str,
    few: Database,
    many: Database,
    call: Callable[[Database], None],
    rounds: int,
    said: str,
) -> dict[str, Any]:
    def took(database: Database) -> float:
        began = time.perf_counter()
        for _ in range(_LOOKS):
            call(database)
        return (time.perf_counter() - began) / _LOOKS

    for database in (few, many):
        took(database)
    pairs = [(took(few), took(many)) for _ in range(rounds)]
    ratio = statistics.median(large / small for small, large in pairs)
    ms = [1000 * statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
    return row(figure, kind, ratio, "ratio", _TARGET, f"{said}; {ms[1]:.2f} ms against {ms[0]:.2f} ms")


def _claim(database: Database) -> None:
    """Claim and take it back."""
    with database.read() as session:
        if jobs.claim_next(session, Slot("benchmark"), 60) is None:
            raise RuntimeError("nothing to claim")
