"""The models a request can name: a base model, the result of a succeeded job, or any checkpoint by name or id.

Deleting a tuned model takes its name away. The job stays, and so does its last checkpoint, which is from then on kept
by nothing but a pin: it can be deleted like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import Forbidden, InvalidRequest, NotFound
from jobs.repositories import checkpoints, job_rows
from jobs.services.models import BaseModel
from jobs.tables import Checkpoint, Job

BASE_OWNER = "base"


@dataclass(frozen=True)
class Model:
    """A model a request can name."""

    id: str
    created_at: int
    owned_by: str
    base: str | None = None
    job_id: str | None = None
    checkpoint_id: str | None = None


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are: a base model of the catalog, or a checkpoint that descends from one."""

    base: BaseModel
    checkpoint: Checkpoint | None = None
    job: Job | None = None
    """The job that made the checkpoint."""

    @property
    def key(self) -> str:
        """Equal keys, equal weights."""
        if self.checkpoint is not None:
            return f"checkpoint:{self.checkpoint.manifest_sha256}"
        return f"base:{self.base.id}:{self.base.created_at}"


def list_all(ctx: Context, project_id: str) -> list[Model]:
    """Base models, then the results of the project's jobs. Checkpoints are listed with their jobs."""
    base = [_of_base(model) for model in ctx.catalog.list()]
    with ctx.db.read() as session:
        tuned = job_rows.succeeded(session, project_id)
    return base + [_of_job(job) for job in tuned]


def get(ctx: Context, project_id: str, model_id: str) -> Model:
    """One model by id. Raises NotFound."""
    base = ctx.catalog.get(model_id)
    if base is not None:
        return _of_base(base)
    with ctx.db.read() as session:
        job = _tuned(session, project_id, model_id)
        if job is not None:
            return _of_job(job)
        found = _checkpoint(session, project_id, model_id)
        if found is None:
            raise unknown(model_id)
        maker = session.get_one(Job, found.job_id)
    return Model(found.name, int(found.created_at), maker.project_id, maker.base, maker.id, found.id)


def resolve(ctx: Context, session: Session, project_id: str, model_id: str) -> Weights:
    """The weights of a model, to be used.

    Raises:
        NotFound: there is no such model (any more), or its base model is gone.
        InvalidRequest: its checkpoint is damaged.
    """
    base = ctx.catalog.get(model_id)
    if base is not None:
        return Weights(base)
    job = _tuned(session, project_id, model_id)
    if job is not None and job.final_checkpoint_id is not None:
        found = checkpoints.get(session, project_id, job.final_checkpoint_id)
    else:
        found = _checkpoint(session, project_id, model_id)
    if found is None:
        raise unknown(model_id)
    maker = session.get_one(Job, found.job_id)
    if found.damaged:
        message = f"The files of the model '{model_id}' were found missing or altered: use another checkpoint."
        raise InvalidRequest(message, "model", "checkpoint_damaged")
    base = ctx.catalog.get(maker.base)
    if base is None:
        message = f"The base model '{maker.base}' of the model '{model_id}' does not exist any more."
        raise NotFound(message, "model", "model_not_found")
    return Weights(base, found, maker)


def delete(ctx: Context, project_id: str, model_id: str) -> None:
    """Take a tuned model's name away.

    Raises:
        Forbidden: it is a base model.
        InvalidRequest: it is a checkpoint.
        NotFound: there is no such model.
    """
    if ctx.catalog.get(model_id) is not None:
        raise Forbidden(f"'{model_id}' is a base model: only the service's operator can remove it.", "model")
    with ctx.db.transaction() as session:
        job = _tuned(session, project_id, model_id)
        if job is not None:
            job_rows.delete_tuned_model(session, job.id)
            if job.final_checkpoint_id is not None:
                checkpoints.release(session, job.final_checkpoint_id)
            return
        found = _checkpoint(session, project_id, model_id)
    if found is None:
        raise unknown(model_id)
    message = f"'{model_id}' is a checkpoint: DELETE /v1/fine_tuning/checkpoints/{found.id}."
    raise InvalidRequest(message, "model", "model_is_checkpoint")


def unknown(model_id: str) -> NotFound:
    """What to say of a name that is no model's."""
    return NotFound(f"The model '{model_id}' does not exist.", "model", "model_not_found")


def _of_base(model: BaseModel) -> Model:
    return Model(model.id, model.created_at, BASE_OWNER)


def _of_job(job: Job) -> Model:
    finished = int(job.finished_at or 0)
    return Model(job.tuned_model, finished, job.project_id, job.base, job.id, job.final_checkpoint_id)


def _tuned(session: Session, project_id: str, model_id: str) -> Job | None:
    return None if "\x00" in model_id else job_rows.by_tuned_model(session, project_id, model_id)


def _checkpoint(session: Session, project_id: str, model_id: str) -> Checkpoint | None:
    """A checkpoint that the project may use, its own or a shared one, by id or name."""
    return None if "\x00" in model_id else checkpoints.readable(session, project_id, model_id)
