"""/v1/organization: projects, their keys and limits, administrators' keys, the audit log. For administrators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth import Admin
from api.deps import After, Ctx, Limit
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.lists import ListOf, list_of
from api.schemas.organization import (
    AdminKeyDeleted,
    AdminKeyObject,
    AuditLogObject,
    CreateAdminKey,
    CreatedAdminKey,
    CreatedProjectKey,
    CreateProject,
    CreateProjectKey,
    LimitsObject,
    ProjectKeyDeleted,
    ProjectKeyObject,
    ProjectObject,
    RotateKey,
    UpdateProject,
    admin_key_object,
    audit_log_object,
    created_admin_key,
    created_project_key,
    project_key_object,
    project_object,
)
from jobs.context import Context
from jobs.limits import ProjectLimits
from jobs.services import audit, keys, projects
from jobs.tenant_tables import Project

router = APIRouter(prefix="/v1/organization", tags=["Organization"], responses=RESPONSES, route_class=JsonRoute)
Order = Annotated[Literal["asc", "desc"], Query(description="By creation time.")]
Names = Annotated[list[str] | None, Query(max_length=100)]


@router.post("/projects")
def create_project(body: CreateProject, ctx: Ctx, admin: Admin) -> ProjectObject:
    """Make a project. It has no key yet."""
    return project_object(projects.create(ctx, admin.organization_id, body.name))


@router.get("/projects")
def list_projects(
    ctx: Ctx, admin: Admin, after: After = None, limit: Limit = 20, include_archived: bool = False
) -> ListOf[ProjectObject]:
    """List projects, newest first."""
    page = projects.page(ctx, admin.organization_id, after=after, limit=limit, include_archived=include_archived)
    return list_of(page, project_object)


@router.get("/projects/{project_id}")
def retrieve_project(project_id: str, ctx: Ctx, admin: Admin) -> ProjectObject:
    """Describe a project."""
    return project_object(projects.get(ctx, admin.organization_id, project_id))


@router.post("/projects/{project_id}")
def update_project(project_id: str, body: UpdateProject, ctx: Ctx, admin: Admin) -> ProjectObject:
    """Rename a project."""
    return project_object(projects.rename(ctx, admin.organization_id, project_id, body.name))


@router.post("/projects/{project_id}/archive")
def archive_project(project_id: str, ctx: Ctx, admin: Admin) -> ProjectObject:
    """Refuse a project's keys for good. Its jobs go on and its objects stay; cancel or delete them before."""
    return project_object(projects.archive(ctx, admin.organization_id, project_id))


@router.get("/projects/{project_id}/limits")
def retrieve_project_limits(project_id: str, ctx: Ctx, admin: Admin) -> LimitsObject:
    """What a project may use."""
    return _limits(ctx, projects.get(ctx, admin.organization_id, project_id))


@router.put("/projects/{project_id}/limits")
def update_project_limits(project_id: str, body: ProjectLimits, ctx: Ctx, admin: Admin) -> LimitsObject:
    """Replace a project's limits; what is left out or null is as for the installation."""
    return _limits(ctx, projects.set_limits(ctx, admin.organization_id, project_id, body))


@router.post("/projects/{project_id}/api_keys")
def create_api_key(project_id: str, body: CreateProjectKey, ctx: Ctx, admin: Admin) -> CreatedProjectKey:
    """Make a key of a project. The answer is the only one that shows it."""
    made = keys.create(
        ctx,
        admin.organization_id,
        project_id,
        name=body.name,
        scopes=body.scopes,
        expires_in_s=body.expires_in_seconds,
        by=admin.key_id,
    )
    return created_project_key(made)


@router.get("/projects/{project_id}/api_keys")
def list_api_keys(
    project_id: str, ctx: Ctx, admin: Admin, after: After = None, limit: Limit = 20, order: Order = "desc"
) -> ListOf[ProjectKeyObject]:
    """List the keys of a project that are not revoked."""
    page = keys.page(ctx, admin.organization_id, project_id, after=after, limit=limit, order=order)
    return list_of(page, project_key_object)


@router.get("/projects/{project_id}/api_keys/{key_id}")
def retrieve_api_key(project_id: str, key_id: str, ctx: Ctx, admin: Admin) -> ProjectKeyObject:
    """Describe a key of a project, also a revoked one."""
    return project_key_object(keys.get(ctx, admin.organization_id, project_id, key_id))


@router.delete("/projects/{project_id}/api_keys/{key_id}")
def delete_api_key(project_id: str, key_id: str, ctx: Ctx, admin: Admin) -> ProjectKeyDeleted:
    """Revoke a key. It is refused within seconds, and stays in the database for the audit log."""
    keys.revoke(ctx, admin.organization_id, project_id, key_id)
    return ProjectKeyDeleted(id=key_id)


@router.post("/projects/{project_id}/api_keys/{key_id}/rotate")
def rotate_api_key(
    project_id: str, key_id: str, ctx: Ctx, admin: Admin, body: RotateKey | None = None
) -> CreatedProjectKey:
    """Make a key with the same name and scopes; the old one expires after `overlap_seconds`."""
    overlap_s = (body or RotateKey()).overlap_seconds
    made = keys.rotate(ctx, admin.organization_id, project_id, key_id, overlap_s=overlap_s, by=admin.key_id)
    return created_project_key(made)


@router.post("/admin_api_keys")
def create_admin_api_key(body: CreateAdminKey, ctx: Ctx, admin: Admin) -> CreatedAdminKey:
    """Make an administrator's key. The answer is the only one that shows it."""
    expires = body.expires_in_seconds
    made = keys.create_admin(ctx, admin.organization_id, name=body.name, expires_in_s=expires, by=admin.key_id)
    return created_admin_key(made)


@router.get("/admin_api_keys")
def list_admin_api_keys(
    ctx: Ctx, admin: Admin, after: After = None, limit: Limit = 20, order: Order = "desc"
) -> ListOf[AdminKeyObject]:
    """List the administrators' keys that are not revoked; BGPO_ADMIN_KEY is none of them."""
    page = keys.page_admin(ctx, admin.organization_id, after=after, limit=limit, order=order)
    return list_of(page, admin_key_object)


@router.get("/admin_api_keys/{key_id}")
def retrieve_admin_api_key(key_id: str, ctx: Ctx, admin: Admin) -> AdminKeyObject:
    """Describe an administrator's key, also a revoked one."""
    return admin_key_object(keys.get_admin(ctx, admin.organization_id, key_id))


@router.delete("/admin_api_keys/{key_id}")
def delete_admin_api_key(key_id: str, ctx: Ctx, admin: Admin) -> AdminKeyDeleted:
    """Revoke an administrator's key. It is refused within seconds."""
    keys.revoke_admin(ctx, admin.organization_id, key_id)
    return AdminKeyDeleted(id=key_id)


@router.post("/admin_api_keys/{key_id}/rotate")
def rotate_admin_api_key(key_id: str, ctx: Ctx, admin: Admin, body: RotateKey | None = None) -> CreatedAdminKey:
    """Make a key with the same name; the old one expires after `overlap_seconds`."""
    overlap_s = (body or RotateKey()).overlap_seconds
    return created_admin_key(
        keys.rotate_admin(ctx, admin.organization_id, key_id, overlap_s=overlap_s, by=admin.key_id)
    )


@router.get("/audit_logs")
def list_audit_logs(
    ctx: Ctx,
    _: Admin,
    after: After = None,
    limit: Limit = 20,
    project_ids: Annotated[Names, Query(alias="project_ids[]")] = None,
    actor_ids: Annotated[Names, Query(alias="actor_ids[]", description="Ids of keys.")] = None,
    event_types: Annotated[Names, Query(alias="event_types[]")] = None,
    resource_ids: Annotated[Names, Query(alias="resource_ids[]")] = None,
    since: Annotated[int | None, Query(alias="effective_at[gte]", ge=0, le=2**53)] = None,
    until: Annotated[int | None, Query(alias="effective_at[lte]", ge=0, le=2**53)] = None,
) -> ListOf[AuditLogObject]:
    """Who did what, newest first; entries match every filter given."""
    wanted = {
        "project_ids": project_ids,
        "actor_ids": actor_ids,
        "event_types": event_types,
        "resource_ids": resource_ids,
    }
    filters = {name: values or () for name, values in wanted.items()}
    page = audit.page(ctx, after=after, limit=limit, since=since, until=until, **filters)
    return list_of(page, audit_log_object)


def _limits(ctx: Context, project: Project) -> LimitsObject:
    limits = ProjectLimits.stored(project.limits)
    return LimitsObject(project_id=project.id, limits=limits, effective=limits.over(ctx.settings))
