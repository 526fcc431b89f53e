"""Checkpoints of a job. A row means: all files are in the artifact store."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.artifacts import Manifest
from jobs.db import now
from jobs.ids import CHECKPOINT, is_id, new_id
from jobs.repositories import jobs
from jobs.repositories.dialect import insert as dialect_insert
from jobs.states import State
from jobs.tables import Checkpoint, Job


def insert(
    session: Session,
    job_id: str,
    epoch: int,
    step: int,
    key: str,
    manifest: Manifest,
    final: bool,
    metrics: Mapping[str, float],
) -> str | None:
    """Record a published checkpoint and return its id; None when `epoch` may no longer write.

    The job resumes from it from now on and gets all its attempts back. A replayed step keeps its id and gets the new
    files.
    """
    if jobs.hold(session, job_id, epoch) not in (State.RUNNING, State.PAUSING):
        return None
    tuned_model = session.scalars(sa.select(Job.tuned_model).where(Job.id == job_id)).one()
    values = {
        "epoch": epoch,
        "created_at": now(),
        "key": key,
        "manifest": manifest.as_json(),
        "manifest_sha256": manifest.sha256,
        "bytes": manifest.bytes,
        "final": final,
        "metrics": dict(metrics),
    }
    statement = dialect_insert(session, Checkpoint).values(
        id=new_id(CHECKPOINT), job_id=job_id, step=step, name=f"{tuned_model}:ckpt-step-{step}", **values
    )
    replaced = {name: statement.excluded[name] for name in values}
    statement = statement.on_conflict_do_update(index_elements=["job_id", "step"], set_=replaced)
    checkpoint_id = session.scalars(statement.returning(Checkpoint.id)).one()
    jobs.made_progress(session, job_id, checkpoint_id, step, final=final)
    return checkpoint_id


def by_id(session: Session, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint, whatever its project: for workers."""
    return session.get(Checkpoint, checkpoint_id)


def get(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint of a project by its id."""
    if not is_id(CHECKPOINT, checkpoint_id):
        return None
    return session.scalar(_of_project(project_id).where(Checkpoint.id == checkpoint_id))


def by_name(session: Session, project_id: str, name: str) -> Checkpoint | None:
    """One checkpoint of a project by its model id."""
    return session.scalar(_of_project(project_id).where(Checkpoint.name == name))


def page(session: Session, job_id: str, *, after: Checkpoint | None, limit: int) -> list[Checkpoint]:
    """Up to `limit` checkpoints, newest step first."""
    statement = sa.select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()).limit(limit)
    if after is not None:
        statement = statement.where(Checkpoint.step < after.step)
    return list(session.scalars(statement))


def _of_project(project_id: str) -> sa.Select[Checkpoint]:
    return sa.select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(Job.project_id == project_id)
