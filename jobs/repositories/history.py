"""What this deployment has done before: the attempts that estimates are made from, whosever they were.

Only rates and durations leave here, never whose job it was or what was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.states import ACTIVE, State
from jobs.tables import Attempt, Job, Metric


@dataclass(frozen=True)
class Past:
    """A finished attempt that made steps."""

    recipe: dict[str, Any]
    gpus: int
    seconds: float
    steps: int
    """Those whose values are still the attempt's own: an attempt after it may have replayed some."""


def finished(session: Session, model: str, gpu_type: str | None, *, limit: int = 50) -> list[Past]:
    """The last attempts that trained this base model, on this class of accelerator where one is given."""
    mine = (Metric.job_id == Attempt.job_id, Metric.epoch == Attempt.epoch, Metric.split == "train", Metric.step > 0)
    steps = sa.select(sa.func.count(Metric.step.distinct())).where(*mine).correlate(Attempt).scalar_subquery()
    seconds = Attempt.ended_at - Attempt.started_at
    where = [
        sa.func.coalesce(Job.base_model, Job.model) == model,
        Job.deleted_at.is_(None),
        Attempt.ended_at.is_not(None),
    ]
    if gpu_type is not None:
        where.append(Job.gpu_type == gpu_type)
    statement = sa.select(Job.recipe, Job.gpus, seconds, steps).join(Job, Job.id == Attempt.job_id).where(*where)
    rows = session.execute(statement.order_by(Attempt.ended_at.desc()).limit(limit))
    return [Past(*row) for row in rows if row[2] > 0 and row[3] > 0]


def durations(session: Session, *, limit: int = 20) -> list[float]:
    """Seconds that the last attempts took."""
    seconds = Attempt.ended_at - Attempt.started_at
    ended = sa.select(seconds).where(Attempt.ended_at.is_not(None), Attempt.pid.is_not(None))
    return list(session.scalars(ended.order_by(Attempt.ended_at.desc()).limit(limit)))


def ahead(session: Session, priority: int, gpu_type: str | None) -> tuple[int, int]:
    """How many queued jobs would start before a new one of this priority, and how many run."""
    rivals = [Job.state == State.QUEUED, Job.priority >= priority]
    if gpu_type is not None:
        rivals.append(sa.or_(Job.gpu_type.is_(None), Job.gpu_type == gpu_type))
    waiting = sa.select(sa.func.count()).select_from(Job).where(*rivals)
    running = sa.select(sa.func.count()).select_from(Job).where(Job.state.in_(ACTIVE))
    return session.scalars(waiting).one(), session.scalars(running).one()
