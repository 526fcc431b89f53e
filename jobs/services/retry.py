"""Retrying a job: a new one with the same recipe, seed and files, going on from the last good checkpoint.

The new job has its own id, model name, events and metrics; those of the steps before its checkpoint are the source's.
Only what says when and where it runs may change. A final checkpoint is nothing to go on from: a run that had come so
far goes back to the one before it, and ends in the same weights.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import InvalidRequest, InvalidState, NotFound
from jobs.ids import JOB, new_id
from jobs.repositories import checkpoints, files, job_rows
from jobs.services import scheduling
from jobs.services.create import enter_queue, require_model, tuned_model
from jobs.services.once import Ticket
from jobs.services.submit import Submission, repeated, submission, submit
from jobs.states import State, wire_status
from jobs.tables import Job
from jobs.wire.request import RetryJob, Scheduling


def retry(
    ctx: Context,
    project_id: str,
    job_id: str,
    body: RetryJob,
    idempotency_key: str | None = None,
    ticket: Ticket | None = None,
) -> Job:
    """Queue a new job that does what a failed or cancelled one was to do.

    Raises:
        NotFound: no such job, or its base model is gone.
        InvalidState: it has not failed and was not cancelled.
        InvalidRequest: a file or a secret of it is gone, or this installation does not offer what the overrides ask
            for.
        InsufficientQuota, Conflict: as for `create`.
    """
    changes = body.rl.model_dump(mode="json", exclude_unset=True)
    wanted = submission(project_id, idempotency_key, {"retry": job_id, "rl": changes}, ticket)
    return repeated(ctx, wanted) or _make(ctx, wanted, job_id, changes)


def _make(ctx: Context, wanted: Submission, job_id: str, changes: dict[str, Any]) -> Job:
    with ctx.db.read() as session:
        source = job_rows.get(session, wanted.project_id, job_id)
    if source is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", "id")
    status = wire_status(State(source.state))
    if status not in ("failed", "cancelled"):
        raise InvalidState(
            f"Job {job_id} is {status}: only failed and cancelled jobs can be retried. Clone it instead."
        )
    require_model(ctx, source.base)
    wish = _merged(scheduling.of_job(source), changes)
    where = scheduling.columns(ctx, Scheduling.model_validate(wish))

    def enter(session: Session) -> Job:
        _hold_files(session, source)
        _hold_start(session, source)
        resume = job_rows.resume_point(session, source)
        new = new_id(JOB)
        name = tuned_model(new, source.project_id, source.base, source.suffix)
        job = job_rows.again(source, id=new, tuned_model=name, max_attempts=ctx.settings.max_attempts, resume=resume)
        job.idempotency_key, job.request_hash = wanted.key, wanted.digest
        for column, value in where.items():
            setattr(job, column, value)
        if source.request is not None:
            job.request = source.request | {"rl": _merged(source.request.get("rl", {}), changes)}
        first = "the base model" if source.start_checkpoint_id is None else source.model
        goes_on = f"continues from its step {resume.step}" if resume is not None else f"starts from {first}"
        return enter_queue(session, job, f"Retries {source.id}: {goes_on}")

    return submit(ctx, wanted, enter)


def _hold_start(session: Session, job: Job) -> None:
    """The checkpoint that the job's weights come from must be there, and stay until the new job exists."""
    if job.start_checkpoint_id is not None:
        start = checkpoints.hold(session, job.start_checkpoint_id)
        if start is None or start.damaged:
            what = "deleted" if start is None else "found damaged"
            message = f"The checkpoint of the model {job.model} that the job starts from was {what}: create a new job."
            raise InvalidRequest(message, "model", "invalid_model")


def _merged(old: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {name: old.get(name, {}) | changes.get(name, {}) for name in ("resources", "budget")}
    return old | changes | {name: merged for name, merged in nested.items() if merged}


def _hold_files(session: Session, job: Job) -> None:
    """Nobody may delete the files before the new job exists."""
    for param in ("training_file", "validation_file"):
        file_id = getattr(job, param)
        if file_id is not None and files.get(session, job.project_id, file_id, lock="share") is None:
            message = f"File {file_id} was deleted: upload it again, and clone the job with the new {param}."
            raise InvalidRequest(message, param, f"invalid_{param}")
