"""/v1/base_models: the catalog of what jobs can start from."""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import Ctx, ReadsModels
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.models import BaseModelList, BaseModelObject, base_model_object
from jobs.services import base_models

router = APIRouter(prefix="/v1/base_models", tags=["Models"], responses=RESPONSES, route_class=JsonRoute)


@router.get("")
def list_base_models(ctx: Ctx, project: ReadsModels) -> BaseModelList:
    """List the base models with what is known of each; never paged."""
    return BaseModelList(data=[base_model_object(info) for info in base_models.list_all(ctx)])


@router.get("/{model:path}")
def retrieve_base_model(model: str, ctx: Ctx, project: ReadsModels) -> BaseModelObject:
    """Describe a base model."""
    return base_model_object(base_models.get(ctx, model))
