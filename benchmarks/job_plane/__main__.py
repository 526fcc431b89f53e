"""The job plane's figures: latency of a start, claims, status polls, metric rows, and what a large table costs.

    python -m benchmarks.job_plane [--quick] [--only PART ...] [--database KIND ...] [--json PATH]

Real processes throughout: `python -m api`, `python -m worker`, a private Redis, SQLite and a PostgreSQL server with its
own defaults, and a trainer that does nothing. Each part gets databases and processes of its own.

* `starts`: `submit_to_start_*`, from sending the POST to the job's `started_at` with an idle worker, one job at a time;
* `throughput`: `jobs_started_per_s`, jobs that four workers start in a second when many wait, each a whole attempt with
  its trainer process, checkpoint and end; `claims_per_s`, the database's part of that alone;
* `polls`: GET of a running job, beside a bare FastAPI route served the same way, in turns. `ratio` is the median of the
  turns' ratios; where other programs use the machine, believe it and the CPU times rather than the rates;
* `ingestion`: metric rows that a worker's recorder stores in a second, and the cost of SQLite's durable commits;
* `growth`: a poll, the first page of the list and a claim in a table of 100,000 jobs, against one of 100.

The load generator is one thread of this process; its share of a core stands beside what it measured. The load averages
before and after are in the result.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import _report
from benchmarks.job_plane.growth import growth
from benchmarks.job_plane.ingestion import ingestion
from benchmarks.job_plane.plane import Databases, Plane, postgres
from benchmarks.job_plane.polls import polls
from benchmarks.job_plane.rows import QUICK, Sizes
from benchmarks.job_plane.starts import latency, throughput
from cli.redis_server import start_redis
from jobs.db import create_engine

Rows = list[dict[str, Any]]
_ON_A_PLANE: dict[str, Callable[[Plane, str, Sizes], Rows]] = {
    "starts": latency,
    "throughput": throughput,
    "polls": polls,
    "ingestion": ingestion,
}
PARTS = (*_ON_A_PLANE, "growth")
KINDS = ("sqlite", "postgresql")
_LIBRARIES = ("fastapi", "starlette", "uvicorn", "h11", "sqlalchemy", "psycopg", "celery", "kombu", "redis")


def main() -> None:
    """Measure and report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a run to see that it runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--database", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else Sizes()
    before = os.getloadavg()
    rows, servers = measure(arguments.only, arguments.database, sizes)
    conditions = servers | {
        "load_before": " ".join(f"{load:.2f}" for load in before),
        "load_after": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    conditions |= {name: metadata.version(name) for name in _LIBRARIES}
    _report.report("The job plane", rows, arguments.json, conditions=conditions)


def measure(parts: tuple[str, ...], kinds: tuple[str, ...], sizes: Sizes) -> tuple[Rows, dict[str, str]]:
    """The rows of some parts on some databases, and the servers' versions."""
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="bgpo-job-plane-") as name:
        folder = Path(name)
        redis, redis_url = start_redis(folder=folder, log_path=folder / "redis.log", env=os.environ)
        try:
            with postgres(folder / "postgresql") as server:
                databases = Databases(folder, server)
                for kind in kinds:
                    for part in parts:
                        place = folder / f"{part}-{kind}"
                        began = time.monotonic()
                        rows += _part(part, place, databases, redis_url, kind, sizes)
                        print(f"{part} on {kind}: {time.monotonic() - began:.0f} s", flush=True)
                return rows, _servers(server)
        finally:
            redis.kill()


def _part(part: str, folder: Path, databases: Databases, redis_url: str, kind: str, sizes: Sizes) -> Rows:
    if part == "growth":
        return growth(folder, databases, redis_url, kind, sizes)
    with Plane(folder, databases.new(kind), redis_url) as plane:
        return _ON_A_PLANE[part](plane, kind, sizes)


def _servers(server: sa.URL) -> dict[str, str]:
    versions = {"sqlite": sqlite3.sqlite_version}
    engine = create_engine(server.render_as_string(hide_password=False))
    with engine.connect() as connection:
        for name in ("server_version", "fsync", "synchronous_commit"):
            versions[f"postgresql_{name}"] = connection.execute(sa.text(f"SHOW {name}")).scalar_one()
    engine.dispose()
    return versions


if __name__ == "__main__":
    main()
