"""How fast a worker stores what its trainer reports, and what a commit costs that survives a power cut."""

from __future__ import annotations

import statistics
import time
from typing import Any

import sqlalchemy as sa

from benchmarks.job_plane.plane import Plane
from benchmarks.job_plane.polls import running_job
from benchmarks.job_plane.rows import Sizes, quantile, row
from bgpo.records import MetricRecord
from jobs.db import Database
from jobs.repositories import events
from jobs.tables import Metric
from worker.recorder import Recorder

_VALUES = 20
"""Values of a step, about what a reinforcement run reports."""


def ingestion(plane: Plane, kind: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Metric rows a second through a worker's recorder; on SQLite also the price of `synchronous=FULL`."""
    plane.start_api()
    job_id = running_job(plane)
    values = {f"value_{number:02d}": number / 7 for number in range(_VALUES)}
    records = [
        MetricRecord(
            type="metric", seq=step, time=0.0, step=step, total_steps=sizes.metric_steps, split="train", values=values
        )
        for step in range(1, sizes.metric_steps + 1)
    ]
    recorder = Recorder(plane.database, job_id, epoch=1)
    for record in records:
        recorder.put(record)
    recorder.close()
    began = time.perf_counter()
    recorder.start()
    recorder.join()
    seconds = time.perf_counter() - began
    with plane.database.read() as session:
        stored = session.scalars(sa.select(sa.func.count()).select_from(Metric).where(Metric.job_id == job_id)).one()
    if stored != _VALUES * sizes.metric_steps:
        raise RuntimeError(f"{stored} rows were stored")
    detail = f"{sizes.metric_steps} steps of {_VALUES} values, and an event a step"
    rows = [row("metric_rows_per_s", kind, stored / seconds, "1/s", None, detail)]
    if kind == "sqlite":
        rows += _commits(plane, kind, job_id, sizes)
    return rows


def _commits(plane: Plane, kind: str, job_id: str, sizes: Sizes) -> list[dict[str, Any]]:
    """One event a transaction, with and without an fsync in its commit, turn by turn."""
    lazy = Database(plane.settings.database_url)
    sa.event.listen(lazy.engine, "connect", _do_not_sync)
    took: dict[str, list[float]] = {"FULL": [], "NORMAL": []}
    for _ in range(sizes.commits):
        for name, database in (("FULL", plane.database), ("NORMAL", lazy)):
            began = time.perf_counter()
            with database.transaction() as session:
                events.append(session, job_id, None, "info", "measured")
            took[name].append(1000 * (time.perf_counter() - began))
    lazy.dispose()
    full, normal = took["FULL"], took["NORMAL"]
    detail = f"p99 {quantile(full, 0.99):.2f} ms; with NORMAL {statistics.median(normal):.2f} ms, p99 "
    detail += f"{quantile(normal, 0.99):.2f} ms, and a power cut may lose it"
    return [row("commit_p50, synchronous=FULL", kind, statistics.median(full), "ms", None, detail)]


def _do_not_sync(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
