"""/v1/organization/projects/{project_id}/secrets: the secrets of any project, for administrators."""

from __future__ import annotations

from fastapi import APIRouter

from api.auth import Admin
from api.deps import Ctx
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.graders import SecretDeleted, SecretList, SecretObject, secret_object
from jobs.services import projects, secrets
from jobs.wire.graders import StoreSecret

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/secrets",
    tags=["Organization"],
    responses=RESPONSES,
    route_class=JsonRoute,
)


@router.post("")
def set_project_secret(project_id: str, body: StoreSecret, ctx: Ctx, admin: Admin) -> SecretObject:
    """Store a secret for a project's graders, or give it another value. It is encrypted and never shown again."""
    project = projects.get(ctx, admin.organization_id, project_id)
    return secret_object(secrets.put(ctx, project.id, body))


@router.get("")
def list_project_secrets(project_id: str, ctx: Ctx, admin: Admin) -> SecretList:
    """Names and times of a project's secrets."""
    project = projects.get(ctx, admin.organization_id, project_id)
    return SecretList(data=[secret_object(row) for row in secrets.list_all(ctx, project.id)])


@router.delete("/{name}")
def delete_project_secret(project_id: str, name: str, ctx: Ctx, admin: Admin) -> SecretDeleted:
    """Delete a secret that no unfinished job of the project needs."""
    project = projects.get(ctx, admin.organization_id, project_id)
    secrets.delete(ctx, project.id, name)
    return SecretDeleted(name=name)
