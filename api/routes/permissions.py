"""/v1/fine_tuning/checkpoints/{checkpoint_id}/permissions: sharing a checkpoint with other projects.

The path takes the checkpoint's id or, as OpenAI's API does, its model id. An administrator's key may share any.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth import Owner
from api.deps import After, Ctx
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.lists import ListOf, list_of
from api.schemas.organization import PermissionDeleted, PermissionObject, ShareCheckpoint, permission_object
from jobs.services import permissions
from jobs.services.paging import Page

router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{checkpoint_id}/permissions",
    tags=["Checkpoints"],
    responses=RESPONSES,
    route_class=JsonRoute,
)


@router.post("")
def create_checkpoint_permission(
    checkpoint_id: str, body: ShareCheckpoint, ctx: Ctx, owner: Owner
) -> ListOf[PermissionObject]:
    """Let other projects read a checkpoint, download it and use it as a model; the answer lists their permissions."""
    rows = permissions.share(ctx, owner.organization_id, owner.project_id, checkpoint_id, body.project_ids)
    return list_of(Page(rows, False), permission_object)


@router.get("")
def list_checkpoint_permissions(
    checkpoint_id: str,
    ctx: Ctx,
    owner: Owner,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=64)] = None,
) -> ListOf[PermissionObject]:
    """Whom a checkpoint is shared with, by creation time."""
    page = permissions.page(
        ctx, owner.project_id, checkpoint_id, after=after, limit=limit, order=order, shared_with=project_id
    )
    return list_of(page, permission_object)


@router.delete("/{permission_id}")
def delete_checkpoint_permission(checkpoint_id: str, permission_id: str, ctx: Ctx, owner: Owner) -> PermissionDeleted:
    """Stop sharing a checkpoint with a project. Jobs that began from it go on."""
    permissions.withdraw(ctx, owner.project_id, checkpoint_id, permission_id)
    return PermissionDeleted(id=permission_id)
