"""Projects, keys, limits and the audit log on the wire, shaped as OpenAI's administration API where that has one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from api.schemas.lists import Listed
from jobs.keys import redacted
from jobs.limits import ProjectLimits
from jobs.scopes import Preset, Scope
from jobs.services.keys import Made
from jobs.tenant_tables import AdminKey, ApiKey, AuditEntry, CheckpointPermission, Project
from jobs.wire.base import StorableWire

_MAX_EXPIRY_S = 10 * 365 * 86_400
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Expiry = Annotated[int | None, Field(ge=1, le=_MAX_EXPIRY_S, description="The key expires then; null = never.")]


class CreateProject(StorableWire):
    """A new project."""

    name: Name


class UpdateProject(StorableWire):
    """What can be changed about a project."""

    name: Name


class CreateProjectKey(StorableWire):
    """A new key of a project."""

    name: Name
    scopes: list[Scope | Preset] = Field(
        default=["all"],
        min_length=1,
        max_length=16,
        description="Scopes, or `all` or `read_only`. Writing implies reading.",
    )
    expires_in_seconds: Expiry = None


class CreateAdminKey(StorableWire):
    """A new administrator's key."""

    name: Name
    expires_in_seconds: Expiry = None


class RotateKey(StorableWire):
    """How long the old key lives on."""

    overlap_seconds: int = Field(0, ge=0, le=30 * 86_400, description="The old key is good for this long yet.")


class ShareCheckpoint(StorableWire):
    """Whom to share a checkpoint with."""

    project_ids: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        min_length=1, max_length=100
    )


class ProjectObject(Listed):
    """A project."""

    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]


class Owner(BaseModel):
    """Who has a key: keys belong to nobody in particular here."""

    type: Literal["service_account"] = "service_account"
    object: Literal["organization.service_account"] = "organization.service_account"
    id: str | None = Field(None, description="Id of the key that made this one.")
    name: str = ""
    role: str = "member"


class ProjectKeyOwner(BaseModel):
    """Who has a project's key."""

    type: Literal["service_account"] = "service_account"
    service_account: Owner


class ProjectKeyObject(Listed):
    """A key of a project, without the key itself."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="To the minute.")
    revoked_at: int | None
    owner: ProjectKeyOwner
    owner_project_access: Literal["active", "inactive"] = "active"


class CreatedProjectKey(ProjectKeyObject):
    """A new key, which is shown this once."""

    value: str


class AdminKeyObject(Listed):
    """An administrator's key, without the key itself."""

    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None = Field(description="To the minute.")
    revoked_at: int | None
    owner: Owner


class CreatedAdminKey(AdminKeyObject):
    """A new key, which is shown this once."""

    value: str


class ProjectKeyDeleted(BaseModel):
    """Answer to a revocation."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class AdminKeyDeleted(BaseModel):
    """Answer to a revocation."""

    id: str
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    deleted: Literal[True] = True


class LimitsObject(BaseModel):
    """What a project may use."""

    object: Literal["organization.project.limits"] = "organization.project.limits"
    project_id: str
    limits: ProjectLimits = Field(description="Set for the project; null = as for the installation.")
    effective: ProjectLimits = Field(description="What holds; null = no limit.")


class Actor(BaseModel):
    """Whose key it was."""

    type: Literal["api_key"] = "api_key"
    api_key: dict[str, str | None]


class AuditLogProject(BaseModel):
    """The project that a key opens."""

    id: str


class AuditLogObject(Listed):
    """Something somebody did or was refused."""

    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(description="project.created, job.cancelled, login.failed, access.denied, ...")
    effective_at: int
    actor: Actor | None = Field(description="null: no key, or a wrong one.")
    project: AuditLogProject | None
    ip_address: str | None
    resource_id: str | None
    path: str
    request_id: str
    status: int = Field(description="HTTP status of the answer.")
    code: str | None = Field(description="Error code of the answer.")


class PermissionObject(Listed):
    """Another project may read a checkpoint and use it as a model."""

    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    """Answer to a withdrawal."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True


def project_object(row: Project) -> ProjectObject:
    """A row as the wire has it."""
    return ProjectObject(
        id=row.id,
        name=row.name,
        created_at=int(row.created_at),
        archived_at=_seconds(row.archived_at),
        status="active" if row.archived_at is None else "archived",
    )


def project_key_object(row: ApiKey) -> ProjectKeyObject:
    """A row as the wire has it."""
    return ProjectKeyObject(
        id=row.id,
        name=row.name,
        redacted_value=redacted("live", row.id),
        scopes=row.scopes,
        created_at=int(row.created_at),
        expires_at=_seconds(row.expires_at),
        last_used_at=_seconds(row.last_used_at),
        revoked_at=_seconds(row.revoked_at),
        owner=ProjectKeyOwner(service_account=Owner(id=row.created_by, name=row.name)),
    )


def created_project_key(made: Made[ApiKey]) -> CreatedProjectKey:
    """A new key as the wire has it."""
    return CreatedProjectKey(**dict(project_key_object(made.row)), value=made.value)


def admin_key_object(row: AdminKey) -> AdminKeyObject:
    """A row as the wire has it."""
    return AdminKeyObject(
        id=row.id,
        name=row.name,
        redacted_value=redacted("admin", row.id),
        created_at=int(row.created_at),
        expires_at=_seconds(row.expires_at),
        last_used_at=_seconds(row.last_used_at),
        revoked_at=_seconds(row.revoked_at),
        owner=Owner(id=row.created_by, name=row.name, role="owner"),
    )


def created_admin_key(made: Made[AdminKey]) -> CreatedAdminKey:
    """A new key as the wire has it."""
    return CreatedAdminKey(**dict(admin_key_object(made.row)), value=made.value)


def audit_log_object(row: AuditEntry) -> AuditLogObject:
    """A row as the wire has it."""
    return AuditLogObject(
        id=row.id,
        type=row.action,
        effective_at=int(row.created_at),
        actor=Actor(api_key={"id": row.actor}) if row.actor is not None else None,
        project=AuditLogProject(id=row.project_id) if row.project_id is not None else None,
        ip_address=row.ip,
        resource_id=row.object_id,
        path=row.path,
        request_id=row.request_id,
        status=row.status,
        code=row.code,
    )


def permission_object(row: CheckpointPermission) -> PermissionObject:
    """A row as the wire has it."""
    return PermissionObject(id=row.id, created_at=int(row.created_at), project_id=row.project_id)


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
