"""One API process under load: event streams and polls while a job runs, and a large download, with their targets.

    python -m benchmarks.api_load [--only PART ...] [--database KIND ...] [--json PATH]
    python -m benchmarks.api_load --listeners 50 --seconds 5 --bytes 50000000    # to see that it runs

Real processes: `python -m api`, `python -m worker` with a trainer that only tells, a private Redis, SQLite and a
PostgreSQL server with its own defaults.

* `live`: a thousand listeners of a running job's events, metrics and logs and 200 polls a second, for a minute; each
  tenth listener is cut off twice and reconnects. At the end each must have heard exactly what is stored.
* `downloads`: a checkpoint of 2 GB downloaded by four clients at once, each cut off in the middle and resumed.

`met` says whether a row's target was met. The load generator is this process; its share of a core, the API's and that
of everything else on the machine stand beside the figures. The exit status is 1 when a target was missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks.job_plane.plane import Databases, Plane, postgres
from benchmarks.serving.downloads import downloads
from benchmarks.serving.live import Amounts, live, live_plane
from cli.redis_server import start_redis

PARTS = ("live", "downloads")
KINDS = ("sqlite", "postgresql")
_LIBRARIES = ("fastapi", "starlette", "uvicorn", "h11", "sqlalchemy", "psycopg")
_COMPARE = {"<": float.__lt__, "<=": float.__le__, ">=": float.__ge__}


def main() -> int:
    """Measure and report."""
    usual = Amounts()
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--database", nargs="+", choices=KINDS, default=["sqlite"], metavar="KIND")
    parser.add_argument("--listeners", type=int, default=usual.listeners)
    parser.add_argument("--polls", type=float, default=usual.polls_per_s, help="a second")
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--step", type=float, default=usual.step_s, help="seconds of a step of the job")
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="of the checkpoint")
    parser.add_argument("--clients", type=int, default=4, help="that download it")
    arguments = parser.parse_args()
    amounts = Amounts(arguments.listeners, arguments.polls, arguments.seconds, arguments.step)
    before = os.getloadavg()
    rows = measure(arguments.only, arguments.database, amounts, arguments.bytes, arguments.clients)
    conditions = {
        "load_before": " ".join(f"{load:.2f}" for load in before),
        "load_after": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    conditions |= {name: metadata.version(name) for name in _LIBRARIES}
    _report.report("One API process under load", rows, arguments.json, conditions=conditions)
    return 1 if any(row["met"] is False for row in rows) else 0


def measure(
    parts: tuple[str, ...], kinds: tuple[str, ...], amounts: Amounts, size: int, clients: int
) -> list[dict[str, Any]]:
    """The rows of some parts on some databases, each with whether its target was met."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bgpo-api-load-") as name:
        folder = Path(name)
        redis, redis_url = start_redis(folder=folder, log_path=folder / "redis.log", env=os.environ)
        try:
            with postgres(folder / "postgresql") as server:
                databases = Databases(folder, server)
                for kind in kinds:
                    for part in parts:
                        place, url, began = folder / f"{part}-{kind}", databases.new(kind), time.monotonic()
                        if part == "live":
                            with live_plane(place, url, redis_url, amounts) as plane:
                                rows += live(place, plane, kind, amounts)
                        else:
                            with Plane(place, url, redis_url) as plane:
                                rows += downloads(place, plane, kind, size, clients)
                        print(f"{part} on {kind}: {time.monotonic() - began:.0f} s", flush=True)
        finally:
            redis.kill()
    return [row | {"met": met(row["value"], row["target"])} for row in rows]


def met(value: float, target: str | None) -> bool | None:
    """Whether a value is as its target says: `< 250`, or exactly a number. None without a target."""
    if target is None:
        return None
    sign, _, bound = target.rpartition(" ")
    return _COMPARE[sign](float(value), float(bound)) if sign else float(value) == float(bound)


if __name__ == "__main__":
    sys.exit(main())
