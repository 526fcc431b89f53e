"""Metric values of a job. Replayed steps of a newer epoch replace the values of an older one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import events, jobs, judge_usage
from jobs.repositories.dialect import is_postgresql
from jobs.states import State
from jobs.tables import Metric

Key = tuple[int, str, str]
"""Step, split and name of a value."""
_KEY = (Metric.step, Metric.split, Metric.name)
_VALUE = (*_KEY, Metric.value)


class Value(NamedTuple):
    """One value of one step."""

    step: int
    split: str
    name: str
    value: float

    @property
    def key(self) -> Key:
        """Where it stands in the order of all values."""
        return self.step, self.split, self.name


@dataclass(frozen=True)
class Selection:
    """Which values of a job are wanted; None = any. Steps are inclusive."""

    names: Sequence[str] | None = None
    split: str | None = None
    since_step: int | None = None
    until_step: int | None = None

    def of(self, job_id: str) -> list[sa.ColumnElement[bool]]:
        """As conditions."""
        where = [Metric.job_id == job_id]
        if self.names is not None:
            where.append(Metric.name.in_(self.names))
        if self.split is not None:
            where.append(Metric.split == self.split)
        if self.since_step is not None:
            where.append(Metric.step >= self.since_step)
        if self.until_step is not None:
            where.append(Metric.step <= self.until_step)
        return where


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
    What its judges took counts each time.

    False when `epoch` no longer holds the job.
    """
    told = sa.exists().where(Metric.job_id == job_id, Metric.step == step, Metric.split == split)
    if jobs.hold(session, job_id, epoch) is None:
        return False
    judge_usage.add_step(session, job_id, epoch, step, split, values)
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
    wanted = Selection(names, split, since_step, until_step)
    statement = sa.select(Metric).where(*wanted.of(job_id)).order_by(Metric.step, Metric.split, Metric.name)
    return list(session.scalars(statement))


def page(session: Session, job_id: str, wanted: Selection, *, after: Key | None, limit: int) -> list[Value]:
    """Up to `limit` of the wanted values, behind the one that stands at `after`."""
    statement = sa.select(*_VALUE).where(*wanted.of(job_id)).order_by(*_KEY).limit(limit)
    if after is not None:
        statement = statement.where(sa.tuple_(*_KEY) > sa.tuple_(*after))
    return [Value(*row) for row in session.execute(statement)]


def names(session: Session, job_id: str, wanted: Selection) -> list[str]:
    """The names that the wanted values have."""
    statement = sa.select(Metric.name).where(*wanted.of(job_id)).distinct().order_by(Metric.name)
    return list(session.scalars(statement))


def steps(session: Session, job_id: str, wanted: Selection, limit: int) -> list[int]:
    """The first `limit` steps that have wanted values."""
    statement = sa.select(Metric.step).where(*wanted.of(job_id)).distinct().order_by(Metric.step).limit(limit)
    return list(session.scalars(statement))


def downsampled(session: Session, job_id: str, wanted: Selection, most: int) -> list[Value]:
    """At most `most` (4 or more) values of each name and split, with its first, last, lowest and highest.

    A longer series is cut into as many runs of equal length (give or take one) as leave room, and of each the lowest
    and the highest value stay, of equal ones the first. The database does it: only what stays is read.
    """
    series = (Metric.split, Metric.name)
    told = sa.select(
        *_VALUE,
        sa.func.ntile((most - 2) // 2).over(partition_by=series, order_by=Metric.step).label("run"),
        sa.func.row_number().over(partition_by=series, order_by=Metric.step).label("place"),
        sa.func.count().over(partition_by=series).label("total"),
    )
    all_ = told.where(*wanted.of(job_id)).subquery()
    run = (all_.c.split, all_.c.name, all_.c.run)
    low = sa.func.row_number().over(partition_by=run, order_by=(all_.c.value, all_.c.step))
    high = sa.func.row_number().over(partition_by=run, order_by=(all_.c.value.desc(), all_.c.step))
    ranked = sa.select(all_, low.label("low"), high.label("high")).subquery()
    c = ranked.c
    stays = sa.or_(c.total <= most, c.place.in_([1, c.total]), c.low == 1, c.high == 1)
    columns = (c.step, c.split, c.name, c.value)
    return [Value(*row) for row in session.execute(sa.select(*columns).where(stays).order_by(*columns[:3]))]


def all_names(session: Session, job_id: str) -> list[tuple[str, str]]:
    """Split and name of all there is."""
    statement = sa.select(Metric.split, Metric.name).where(Metric.job_id == job_id).distinct()
    return [(split, name) for split, name in session.execute(statement)]


def stream(session: Session, job_id: str) -> Iterator[Metric]:
    """All values ordered by step, split and name, some at a time."""
    statement = sa.select(Metric).where(Metric.job_id == job_id).order_by(Metric.step, Metric.split, Metric.name)
    yield from session.scalars(statement.execution_options(yield_per=1000))
