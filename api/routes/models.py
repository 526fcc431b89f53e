"""/v1/models"""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import Ctx, ReadsModels, WritesModels
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.models import ModelDeleted, ModelList, ModelObject, model_object
from jobs.services import tuned_models

router = APIRouter(prefix="/v1/models", tags=["Models"], responses=RESPONSES, route_class=JsonRoute)


@router.get("")
def list_models(ctx: Ctx, project: ReadsModels) -> ModelList:
    """Base models and the results of jobs. Checkpoints are listed with their jobs."""
    return ModelList(data=[model_object(model) for model in tuned_models.list_all(ctx, project)])


@router.get("/{model:path}")
def retrieve_model(model: str, ctx: Ctx, project: ReadsModels) -> ModelObject:
    """Describe a base model, the result of a job, or a checkpoint by name or id."""
    return model_object(tuned_models.get(ctx, project, model))


@router.delete("/{model:path}")
def delete_model(model: str, ctx: Ctx, project: WritesModels) -> ModelDeleted:
    """Delete a tuned model: its name is no model any more. The job stays, and its last checkpoint can be deleted then.

    Base models cannot be deleted here, and checkpoints have a path of their own.
    """
    tuned_models.delete(ctx, project, model)
    return ModelDeleted(id=model)
