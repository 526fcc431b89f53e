"""Evaluations and exports for their users: put in the queue, read, list, cancel, resume. `changes` deletes them.

`jobs.services.evaluate` and `jobs.services.export` make them. A task that was paused, which only the service does, and
one that was interrupted begin again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.kinds import NAMES, PREFIXES, Kind
from jobs.repositories import checkpoints, job_rows, samples
from jobs.services import secrets as stored_secrets
from jobs.services import tuned_models
from jobs.services.paging import Page, cut, require_start
from jobs.services.quotas import require_job
from jobs.services.ringing import note, ring
from jobs.services.submit import Submission
from jobs.services.tuned_models import Weights
from jobs.states import State
from jobs.tables import Checkpoint, Job, Sample


@dataclass(frozen=True)
class Task:
    """A task with its result."""

    job: Job
    result: Checkpoint | None
    """Of one that has succeeded."""


def enter_queue(ctx: Context, session: Session, kind: Kind, wanted: Submission, model: str, **values: Any) -> Job:
    """Insert a task about a model, whose checkpoint nobody may delete until it is over, and let workers have it.

    Raises:
        NotFound: the model has been deleted meanwhile.
        MissingSecret: a secret of its grader has been.
    """
    project_id = wanted.project_id
    weights = tuned_models.resolve(ctx, session, project_id, model)
    checkpoint = weights.checkpoint
    if checkpoint is not None and checkpoints.hold(session, checkpoint.id) is None:
        raise tuned_models.unknown(model)
    maker = own_maker(weights, project_id)
    task_id = new_id(PREFIXES[kind])
    stored_secrets.hold(session, project_id, values["recipe"])
    job_rows.insert(
        session,
        Job(
            id=task_id,
            kind=kind,
            project_id=project_id,
            idempotency_key=wanted.key,
            request_hash=wanted.digest,
            source_job_id=maker.id if maker is not None else None,
            model=model,
            base_model=weights.base.id if checkpoint is not None else None,
            start_checkpoint_id=checkpoint.id if checkpoint is not None else None,
            training_file="",
            tuned_model=task_id,
            state=State.VALIDATING,
            desired="run",
            attempts_left=ctx.settings.max_attempts,
            max_attempts=ctx.settings.max_attempts,
            **values,
        ),
    )
    job_rows.queue(session, task_id)
    return _find(session, project_id, task_id, kind)


def own_maker(weights: Weights, project_id: str) -> Job | None:
    """The job of this project that made a model; None of a base model, and of another project's checkpoint."""
    maker = weights.job
    return maker if maker is not None and maker.project_id == project_id else None


def get(ctx: Context, project_id: str, task_id: str, kind: Kind) -> Task:
    """One task. Raises NotFound."""
    with ctx.db.read() as session:
        return _with_result(session, _find(session, project_id, task_id, kind))


def page(
    ctx: Context,
    project_id: str,
    kind: Kind,
    *,
    after: str | None,
    limit: int,
    tags: Mapping[str, str],
    untagged: bool,
    states: Collection[State] | None,
    model: str | None,
) -> Page[Task]:
    """Tasks of a kind, newest first. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = job_rows.get(session, project_id, after, kind) if after is not None else None
        require_start(after, start)
        found = job_rows.page(
            session,
            project_id,
            after=start,
            limit=limit + 1,
            tags=tags,
            untagged=untagged,
            states=states,
            model=model,
            kind=kind,
        )
        return cut([_with_result(session, job) for job in found], limit)


def cancel(ctx: Context, project_id: str, task_id: str, kind: Kind) -> Task:
    """Cancel a task. Raises NotFound, InvalidState."""
    with ctx.db.transaction() as session:
        job = job_rows.cancel(session, project_id, task_id, kind)
        if job is None:
            raise _missing(task_id, kind)
        return _with_result(session, job)


def resume(ctx: Context, project_id: str, task_id: str, kind: Kind) -> Task:
    """Queue a paused task again. Raises NotFound, InvalidState, InsufficientQuota."""
    with ctx.db.transaction() as session:
        if _find(session, project_id, task_id, kind).state == State.PAUSED:
            require_job(ctx, session, project_id)
        job = job_rows.resume(session, project_id, task_id, kind)
        assert job is not None
        if job.state == State.QUEUED:
            note(session, job)
        task = _with_result(session, job)
    if job.state == State.QUEUED:
        ring(ctx, job)
    return task


def answers_page(
    ctx: Context, project_id: str, evaluation_id: str, *, after: int | None, limit: int, greedy: bool | None
) -> tuple[Job, Page[Sample]]:
    """An evaluation and its answers so far, row by row. Raises NotFound."""
    with ctx.db.read() as session:
        job = _find(session, project_id, evaluation_id, Kind.EVALUATE)
        each = answers_of(job) + 1
        found = samples.in_order(session, job.id, after=after, limit=limit + 1, each=each, last=greedy)
    return job, cut(found, limit)


def answers_of(job: Job) -> int:
    """Sampled answers to each row of an evaluation. A sample's index is row * (answers + 1) + answer, the greedy one
    last."""
    answers: int = job.recipe["evaluation"]["answers"]
    return answers


def _with_result(session: Session, job: Job) -> Task:
    done = job.state == State.SUCCEEDED and job.final_checkpoint_id is not None
    return Task(job, checkpoints.by_id(session, job.final_checkpoint_id or "") if done else None)


def _find(session: Session, project_id: str, task_id: str, kind: Kind) -> Job:
    job = job_rows.get(session, project_id, task_id, kind)
    if job is None:
        raise _missing(task_id, kind)
    return job


def _missing(task_id: str, kind: Kind) -> NotFound:
    return NotFound(f"No such {NAMES[kind]}: {task_id}", "id")
