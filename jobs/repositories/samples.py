"""Logged rollouts of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import jobs
from jobs.repositories.dialect import insert
from jobs.repositories.text import clean
from jobs.states import State
from jobs.tables import Sample

MAX_TEXT = 65_536
_REPLACED = ("prompt", "completion", "reward", "scores", "error", "epoch", "created_at")


def upsert(
    session: Session,
    job_id: str,
    epoch: int,
    *,
    step: int,
    split: str,
    index: int,
    prompt: str,
    completion: str,
    reward: float | None,
    scores: Mapping[str, float],
    error: str | None,
) -> bool:
    """Store one rollout; False when `epoch` no longer holds the job. Texts are cut to 64 Ki characters."""
    state = jobs.hold(session, job_id, epoch)
    if state is None:
        return False
    if state == State.CANCELLING:
        return True
    statement = insert(session, Sample).values(
        job_id=job_id,
        step=step,
        split=split,
        index=index,
        prompt=clean(prompt, MAX_TEXT),
        completion=clean(completion, MAX_TEXT),
        reward=reward,
        scores=dict(scores),
        error=None if error is None else clean(error, MAX_TEXT),
        epoch=epoch,
        created_at=now(),
    )
    replaced: dict[str, Any] = {name: statement.excluded[name] for name in _REPLACED}
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "step", "split", "index"],
            set_=replaced,
            where=Sample.epoch <= statement.excluded.epoch,
        )
    )
    return True


def in_order(
    session: Session, job_id: str, *, after: int | None, limit: int, each: int, last: bool | None = None
) -> list[Sample]:
    """Up to `limit` samples of an evaluation, by index, above `after`.

    Args:
        each: samples of one row.
        last: only the last of each row, or only the others.
    """
    statement = sa.select(Sample).where(Sample.job_id == job_id).order_by(Sample.index).limit(limit)
    if after is not None:
        statement = statement.where(Sample.index > after)
    if last is not None:
        is_last = Sample.index % each == each - 1
        statement = statement.where(is_last if last else ~is_last)
    return list(session.scalars(statement))


def page(
    session: Session,
    job_id: str,
    *,
    after: tuple[int, str, int] | None,
    limit: int,
    step: int | None = None,
    split: str | None = None,
    min_reward: float | None = None,
) -> list[Sample]:
    """Up to `limit` rollouts, newest step first, below the (step, split, index) of `after`."""
    order = (Sample.step.desc(), Sample.split.desc(), Sample.index.desc())
    statement = sa.select(Sample).where(Sample.job_id == job_id).order_by(*order).limit(limit)
    if after is not None:
        statement = statement.where(sa.tuple_(Sample.step, Sample.split, Sample.index) < sa.tuple_(*after))
    if step is not None:
        statement = statement.where(Sample.step == step)
    if split is not None:
        statement = statement.where(Sample.split == split)
    if min_reward is not None:
        statement = statement.where(Sample.reward >= min_reward)
    return list(session.scalars(statement))
