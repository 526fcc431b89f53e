"""Models that jobs made, by their `ft:...` names: the result of a succeeded job, or any checkpoint.

A checkpoint that another project shares is found by its name, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.context import Context
from jobs.errors import NotFound
from jobs.repositories import checkpoints, job_rows
from jobs.tables import Job


@dataclass(frozen=True)
class Model:
    """A model a request can name."""

    id: str
    created_at: int
    owned_by: str
    base: str | None = None
    job_id: str | None = None
    checkpoint_id: str | None = None


def list_all(ctx: Context, project_id: str) -> list[Model]:
    """Base models, then the results of the project's jobs. Checkpoints are listed with their jobs."""
    base = [Model(model.id, model.created_at, "base") for model in ctx.catalog.list()]
    with ctx.db.read() as session:
        tuned = job_rows.succeeded(session, project_id)
    return base + [
        Model(job.tuned_model, int(job.finished_at or 0), project_id, job.model, job.id, job.final_checkpoint_id)
        for job in tuned
    ]


def get(ctx: Context, project_id: str, model_id: str) -> Model:
    """One model by id. Raises NotFound."""
    if "\x00" not in model_id:
        base = ctx.catalog.get(model_id)
        if base is not None:
            return Model(base.id, base.created_at, "base")
        with ctx.db.read() as session:
            job = job_rows.by_tuned_model(session, project_id, model_id)
            if job is not None:
                finished, checkpoint_id = int(job.finished_at or 0), job.final_checkpoint_id
                return Model(model_id, finished, project_id, job.model, job.id, checkpoint_id)
            found = checkpoints.readable(session, project_id, model_id)
            if found is not None and found.name == model_id:
                owner = session.get_one(Job, found.job_id)  # another project's where it is shared
                return Model(model_id, int(found.created_at), owner.project_id, owner.model, found.job_id, found.id)
    raise NotFound(f"The model '{model_id}' does not exist.", "model", "model_not_found")
