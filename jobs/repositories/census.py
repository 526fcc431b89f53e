"""How many there are of everything, over all projects: for operators, never for a project's user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import attempts
from jobs.repositories.queue import LIVE_S
from jobs.states import ACTIVE, State
from jobs.tables import Attempt, Delivery, Job, Metric, Worker

_DAY_S = 86_400.0
Counts = dict[tuple[str, ...], int]
PHASES = ("step", "rollout", "reward", "loss", "optimizer", "checkpoint")
"""What the trainers of all methods measure the seconds of; graders' names, which users choose, are not among them."""
MEASURED = ("reward_mean", "tokens_per_second", "peak_memory_bytes", *(f"seconds_{phase}" for phase in PHASES))


@dataclass(frozen=True)
class Running:
    """A job that holds a worker."""

    id: str
    project_id: str
    step: int
    steps: int
    measured: Mapping[str, float]
    """What its trainer said of its last training step, of the names in `MEASURED`."""


@dataclass(frozen=True)
class Census:
    """The service at one moment."""

    jobs: Counts
    """By state; of every state, so that a series does not end when there are none."""
    queued: Counts
    """By accelerator class asked for, number of them, priority."""
    oldest_queued_s: float
    workers: Counts
    """By class and state, of those seen in the last `LIVE_S` seconds."""
    workers_gone: int
    attempts: Counts
    """Begun in the last day: by outcome (`running` for none yet) and error code."""
    running: tuple[Running, ...]
    webhooks: Counts


def take(session: Session) -> Census:
    """Count."""
    seen = Worker.last_seen >= now() - LIVE_S
    recent = Attempt.started_at >= now() - _DAY_S
    outcome = sa.func.coalesce(Attempt.outcome, "running")
    queued = Job.state == State.QUEUED
    wish = (sa.func.coalesce(Job.gpu_type, "any"), Job.gpus, Job.priority)
    waited = sa.select(sa.func.max(now() - attempts.waiting_since())).where(queued)
    return Census(
        jobs={(state.value,): 0 for state in State} | _count(session, [Job.state]),
        queued=_count(session, wish, queued),
        oldest_queued_s=max(session.scalar(waited) or 0.0, 0.0),
        workers=_count(session, [Worker.gpu_type, Worker.state], seen),
        workers_gone=session.scalars(sa.select(sa.func.count()).select_from(Worker).where(~seen)).one(),
        attempts=_count(session, [outcome, sa.func.coalesce(Attempt.error_code, "")], recent),
        running=_running(session),
        webhooks=_count(session, [Delivery.state]),
    )


def _running(session: Session) -> tuple[Running, ...]:
    held = sa.select(Job.id, Job.project_id, Job.last_step, Job.total_steps).where(Job.state.in_(ACTIVE))
    last = sa.select(Metric.step).where(Metric.job_id == Job.id, Metric.split == "train")
    newest = last.order_by(Metric.step.desc()).limit(1).correlate(Job).scalar_subquery()
    of_it = sa.and_(Metric.job_id == Job.id, Metric.step == newest, Metric.split == "train", Metric.name.in_(MEASURED))
    told = sa.select(Job.id, Metric.name, Metric.value).join(Metric, of_it).where(Job.state.in_(ACTIVE))
    measured: dict[str, dict[str, float]] = {}
    for job_id, name, value in session.execute(told):
        measured.setdefault(job_id, {})[name] = value
    return tuple(Running(*row, measured.get(row.id, {})) for row in session.execute(held))


def _count(session: Session, columns: Any, *where: sa.ColumnElement[bool]) -> Counts:
    rows = session.execute(sa.select(*columns, sa.func.count()).where(*where).group_by(*columns))
    return {tuple(map(str, row[:-1])): row[-1] for row in rows}
