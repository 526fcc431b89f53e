"""Many jobs at once: copies of one that the API made, by a single statement."""

from __future__ import annotations

import itertools
from typing import Any

import sqlalchemy as sa

from jobs.db import Database, now
from jobs.tables import Job

_numbers = itertools.count(1)
QUEUED: dict[str, Any] = {
    "state": "queued",
    "desired": "run",
    "epoch": 0,
    "last_step": 0,
    "queued_at": now(),
    "not_before": 0.0,
    "event_seq": 0,
} | dict.fromkeys(("phase", "started_at", "finished_at", "rung_at", "final_checkpoint_id", "resume_checkpoint_id"))
"""Columns of a job nobody has taken yet."""


def copy_jobs(database: Database, job_id: str, count: int, **values: Any) -> list[str]:
    """Insert `count` copies of a job with other `values`; their ids, oldest first. All look a second apart."""
    offset = next(_numbers) << 32
    numbers = sa.select(sa.literal(1).label("i")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.i + 1).where(numbers.c.i < count))
    code = sa.cast(numbers.c.i, sa.BigInteger) + offset
    if database.engine.dialect.name == "postgresql":
        digits: sa.ColumnElement[Any] = sa.func.lpad(sa.func.to_hex(code), 32, "0")
    else:
        digits = sa.func.printf("%032x", code)
    table = Job.__table__
    chosen: dict[str, Any] = {
        "id": sa.literal("ftjob-").concat(digits),
        "tuned_model": sa.literal("ft:copy::").concat(digits),
        "idempotency_key": None,
        "created_at": now() - count + numbers.c.i,
    } | values
    columns = [_expression(chosen.get(column.name, column), column) for column in table.columns]
    copies = sa.select(*columns).select_from(sa.join(table, numbers, sa.true())).where(table.c.id == job_id)
    with database.transaction() as session:
        session.execute(sa.insert(table).from_select([column.name for column in table.columns], copies))  # type: ignore[arg-type]
    return [f"ftjob-{offset + i:032x}" for i in range(1, count + 1)]


def _expression(value: Any, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return value if isinstance(value, sa.ColumnElement) else sa.literal(value, column.type)


def analyze(database: Database) -> None:
    """Gather the planner's statistics, as PostgreSQL does by itself within a minute of such a change; SQLite never."""
    if database.engine.dialect.name != "postgresql":
        return
    with database.transaction() as session:
        session.execute(sa.text("ANALYZE"))
