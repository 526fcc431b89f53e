"""Metric values of a job. Replayed steps of a newer epoch replace the values of an older one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import events, jobs
from jobs.repositories.dialect import is_postgresql
from jobs.states import State
from jobs.tables import Metric


def upsert(session: Session, job_id: str, epoch: int, step: int, split: str, values: Mapping[str, float]) -> bool:
    """Store the values of a step; False when `epoch` no longer holds the job. Non-finite values are left out."""
    state = jobs.hold(session, job_id, epoch)
    if state is None:
        return False
    rows = [
        {"job_id": job_id, "step": step, "split": split, "name": name, "value": value, "epoch": epoch}
        for name, value in values.items()
        if math.isfinite(value)
    ]
    if state == State.CANCELLING or not rows:
        return True
    session.connection().execute(_upsert(is_postgresql(session)), rows)
    return True


@cache
def _upsert(on_postgresql: bool) -> sa.Executable:
    """Built once, and given its rows as parameters: with the rows in it, it would be compiled anew for each step."""
    insert = postgresql.insert(Metric) if on_postgresql else sqlite.insert(Metric)
    statement = insert.values(created_at=now())
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["job_id", "step", "split", "name"],
        set_={"value": new.value, "epoch": new.epoch, "created_at": new.created_at},
        where=Metric.epoch <= new.epoch,
    )


def record_step(
    session: Session,
    job_id: str,
    epoch: int,
    *,
    step: int,
    split: str,
    values: Mapping[str, float],
    message: str,
    data: dict[str, Any],
) -> bool:
    """Store the values of a step and tell of it, once: a step that is replayed after a resume has its event already.

    False when `epoch` no longer holds the job.
    """
    told = sa.exists().where(Metric.job_id == job_id, Metric.step == step, Metric.split == split)
    if jobs.hold(session, job_id, epoch) is None:
        return False
    known = session.scalar(sa.select(told))
    if not upsert(session, job_id, epoch, step, split, values):
        return False
    return bool(known) or events.append(session, job_id, epoch, "info", message, "metrics", data) is not None


def series(
    session: Session,
    job_id: str,
    *,
    names: Sequence[str] | None = None,
    split: str | None = None,
    since_step: int | None = None,
    until_step: int | None = None,
) -> list[Metric]:
    """Values ordered by step, split and name; steps are inclusive."""
    statement = sa.select(Metric).where(Metric.job_id == job_id).order_by(Metric.step, Metric.split, Metric.name)
    if names is not None:
        statement = statement.where(Metric.name.in_(names))
    if split is not None:
        statement = statement.where(Metric.split == split)
    if since_step is not None:
        statement = statement.where(Metric.step >= since_step)
    if until_step is not None:
        statement = statement.where(Metric.step <= until_step)
    return list(session.scalars(statement))


def names(session: Session, job_id: str) -> list[tuple[str, str]]:
    """Split and name of all there is."""
    statement = sa.select(Metric.split, Metric.name).where(Metric.job_id == job_id).distinct()
    return [(split, name) for split, name in session.execute(statement)]


def stream(session: Session, job_id: str) -> Iterator[Metric]:
    """All values ordered by step, split and name, some at a time."""
    statement = sa.select(Metric).where(Metric.job_id == job_id).order_by(Metric.step, Metric.split, Metric.name)
    yield from session.scalars(statement.execution_options(yield_per=1000))
