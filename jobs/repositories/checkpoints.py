"""Checkpoints of a job. A row means: all files are in the artifact store.

The result of a task is such a row too, but no checkpoint to anybody: what looks for checkpoints of users sees those of
fine-tuning jobs only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.artifacts import Manifest
from jobs.db import now
from jobs.ids import CHECKPOINT, is_id, new_id
from jobs.kinds import Kind
from jobs.repositories import jobs
from jobs.repositories.dialect import insert as dialect_insert
from jobs.states import ACTIVE, TERMINAL, State
from jobs.tables import Checkpoint, Job
from jobs.tenant_tables import CheckpointPermission


@dataclass(frozen=True)
class Kept:
    """What retention needs to know of a checkpoint."""

    id: str
    step: int
    key: str
    final: bool = False
    best: bool = False
    pinned: bool = False
    damaged: bool = False


def insert(
    session: Session,
    job_id: str,
    epoch: int,
    step: int,
    key: str,
    manifest: Manifest,
    final: bool,
    metrics: Mapping[str, float],
    *,
    best: bool = False,
) -> str | None:
    """Record a published checkpoint and return its id; None when `epoch` may no longer write.

    The job resumes from it from now on and gets all its attempts back. A replayed step keeps its id (and pin) and gets
    the new files; `replaced_key` says before where the old ones are.
    """
    if jobs.hold(session, job_id, epoch) not in (State.RUNNING, State.PAUSING):
        return None
    same = (Checkpoint.job_id == job_id, Checkpoint.step == step, Checkpoint.key == key, ~Checkpoint.damaged)
    recorded = session.scalar(sa.select(Checkpoint.id).where(*same, Checkpoint.manifest_sha256 == manifest.sha256))
    if recorded is not None:  # the answer to the commit was lost
        return recorded
    tuned_model = session.scalars(sa.select(Job.tuned_model).where(Job.id == job_id)).one()
    values = {
        "epoch": epoch,
        "created_at": now(),
        "key": key,
        "manifest": manifest.as_json(),
        "manifest_sha256": manifest.sha256,
        "bytes": manifest.bytes,
        "final": final,
        "best": best,
        "damaged": False,
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


def replaced_key(session: Session, job_id: str, step: int, key: str) -> str | None:
    """Where the files of this step are now, unless that is `key`: to be deleted once the row points to `key`."""
    where = (Checkpoint.job_id == job_id, Checkpoint.step == step, Checkpoint.key != key)
    return session.scalar(sa.select(Checkpoint.key).where(*where))


def by_id(session: Session, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint, whatever its project: for workers."""
    return session.get(Checkpoint, checkpoint_id)


def get(session: Session, project_id: str, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint of a project by its id."""
    if not is_id(CHECKPOINT, checkpoint_id):
        return None
    return session.scalar(_of_project(project_id).where(Checkpoint.id == checkpoint_id))


def readable(session: Session, project_id: str, reference: str) -> Checkpoint | None:
    """One checkpoint by its id or its model id: the project's own, or one that is shared with it."""
    which = Checkpoint.id if is_id(CHECKPOINT, reference) else Checkpoint.name
    shared = sa.exists().where(
        CheckpointPermission.checkpoint_id == Checkpoint.id, CheckpointPermission.project_id == project_id
    )
    statement = _all().where(which == reference)
    return session.scalar(statement.where(sa.or_(Job.project_id == project_id, shared)))


def find(session: Session, project_id: str | None, reference: str) -> Checkpoint | None:
    """One checkpoint by its id or its model id: of a project, or, for administrators (None), of any."""
    which = Checkpoint.id if is_id(CHECKPOINT, reference) else Checkpoint.name
    statement = _all() if project_id is None else _of_project(project_id)
    return session.scalar(statement.where(which == reference))


def latest_good(session: Session, job_id: str) -> Checkpoint | None:
    """The newest checkpoint of a job whose files are not known to be damaged."""
    where = (Checkpoint.job_id == job_id, ~Checkpoint.damaged)
    return session.scalar(sa.select(Checkpoint).where(*where).order_by(Checkpoint.step.desc()).limit(1))


def mark_damaged(session: Session, checkpoint_id: str) -> None:
    """Its files were found missing or altered: nothing resumes from it any more."""
    statement = sa.update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(damaged=True)
    session.execute(statement.execution_options(synchronize_session=False))


def to_resume(session: Session, job_id: str) -> Checkpoint | None:
    """Where a job goes on from; None = from the base model.

    That is the checkpoint its row names, which may be another job's; should that be damaged or gone, its own newest
    good one; else an older good one of that other job, unless that is another project's, which shared this one alone.
    """
    named = session.scalar(
        sa.select(Checkpoint).join(Job, Job.resume_checkpoint_id == Checkpoint.id).where(Job.id == job_id)
    )
    if named is not None and not named.damaged:
        return named
    own = latest_good(session, job_id)
    if own is not None or named is None:
        return own
    maker, here = session.get_one(Job, named.job_id), session.get_one(Job, job_id)
    return latest_good(session, maker.id) if maker.project_id == here.project_id else None


def set_pinned(session: Session, project_id: str, checkpoint_id: str, pinned: bool) -> Checkpoint | None:
    """Keep it whatever retention says, or no longer; None when there is no such checkpoint."""
    if get(session, project_id, checkpoint_id) is None:
        return None
    statement = sa.update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(pinned=pinned)
    session.execute(statement.execution_options(synchronize_session=False))
    return session.get(Checkpoint, checkpoint_id, populate_existing=True)


def lock_all(session: Session, job_id: str) -> list[Kept]:
    """All checkpoints of a job, oldest first, locked against jobs that start to resume from one.

    Locks the job first, so that two who lock its checkpoints do it one after the other.
    """
    session.execute(sa.select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))
    columns = (Checkpoint.id, Checkpoint.step, Checkpoint.key)
    flags = (Checkpoint.final, Checkpoint.best, Checkpoint.pinned, Checkpoint.damaged)
    statement = sa.select(*columns, *flags).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
    return [Kept(*row) for row in session.execute(statement.with_for_update())]


def release(session: Session, checkpoint_id: str) -> None:
    """It is no job's result any more: nothing but a pin, or a job that needs it, keeps it."""
    statement = sa.update(Checkpoint).where(Checkpoint.id == checkpoint_id).values(final=False)
    session.execute(statement.execution_options(synchronize_session=False))


def started_from(session: Session, checkpoint_ids: Collection[str]) -> set[str]:
    """Which of these checkpoints give an unfinished job the weights it starts from."""
    where = (Job.start_checkpoint_id.in_(checkpoint_ids), Job.state.not_in(TERMINAL))
    found = session.scalars(sa.select(Job.start_checkpoint_id).where(*where))
    return {checkpoint_id for checkpoint_id in found if checkpoint_id is not None}


def hold(session: Session, checkpoint_id: str) -> Checkpoint | None:
    """One checkpoint, kept from being deleted until the transaction ends."""
    return session.scalar(sa.select(Checkpoint).where(Checkpoint.id == checkpoint_id).with_for_update(read=True))


def resumed_from(
    session: Session, checkpoint_ids: Collection[str], *, states: Collection[State] | None = None
) -> set[str]:
    """Which of these checkpoints a job goes on from when it runs next, among jobs in `states` if given."""
    statement = sa.select(Job.resume_checkpoint_id).where(Job.resume_checkpoint_id.in_(checkpoint_ids))
    if states is not None:
        statement = statement.where(Job.state.in_(states))
    return {checkpoint_id for checkpoint_id in session.scalars(statement) if checkpoint_id is not None}


def remove(session: Session, checkpoint_ids: Collection[str]) -> None:
    """Delete rows. Their files go after the commit. Ended jobs that would have resumed from one forget it."""
    quiet = {"synchronize_session": False}
    forget = sa.update(Job).where(Job.resume_checkpoint_id.in_(checkpoint_ids)).values(resume_checkpoint_id=None)
    session.execute(forget.execution_options(**quiet))
    session.execute(sa.delete(Checkpoint).where(Checkpoint.id.in_(checkpoint_ids)).execution_options(**quiet))


def known_keys(session: Session, keys: Collection[str]) -> set[str]:
    """Which of these keys a row points to."""
    return set(session.scalars(sa.select(Checkpoint.key).where(Checkpoint.key.in_(keys))))


def being_written(session: Session, attempts: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these attempts (job id, epoch) may still publish. One that may not never will again."""
    epochs = set(attempts)
    where = (Job.id.in_({job_id for job_id, _ in epochs}), Job.state.in_(ACTIVE))
    return {(job_id, epoch) for job_id, epoch in session.execute(sa.select(Job.id, Job.epoch).where(*where))} & epochs


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
    return _all().where(Job.project_id == project_id)


def _all() -> sa.Select[Checkpoint]:
    return sa.select(Checkpoint).join(Job, Job.id == Checkpoint.job_id).where(Job.kind == Kind.TRAIN)
