"""Models on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from jobs.services.tuned_models import Model


class ModelDetails(BaseModel):
    """`rl`: where a tuned model comes from."""

    base_model: str
    job_id: str | None
    checkpoint_id: str | None


class ModelObject(BaseModel):
    """A base model, the result of a job, or a checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    rl: ModelDetails | None = None


class ModelList(BaseModel):
    """All models; never paged."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_object(model: Model) -> ModelObject:
    """A model as the wire has it."""
    details = None
    if model.base is not None:
        details = ModelDetails(base_model=model.base, job_id=model.job_id, checkpoint_id=model.checkpoint_id)
    return ModelObject(id=model.id, created=model.created_at, owned_by=model.owned_by, rl=details)
