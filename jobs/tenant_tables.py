"""The tables of tenants: organisations, projects, keys, who a checkpoint is shared with, and the audit log.

An installation has one organisation, which the migration makes together with its first project; what belongs to a
project names it by `project_id`. `jobs.repositories.usage` computes what it used from rows.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base

DEFAULT_ORGANIZATION = "org-default"
"""The installation's organisation."""
DEFAULT_PROJECT = "proj_default"
"""The project of BGPO_API_KEY, and of everybody where there are no keys."""


class Organization(Base):
    """Whom the projects belong to."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[float]


class Project(Base):
    """A tenant: files, jobs and models belong to one, and nobody in it sees those of another."""

    __tablename__ = "projects"
    __table_args__ = (sa.Index(None, "organization_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    name: Mapped[str]
    created_at: Mapped[float]
    archived_at: Mapped[float | None]
    """Its keys are refused from then on; its rows stay."""
    limits: Mapped[dict[str, Any]]
    """A `jobs.limits.ProjectLimits`, what is not set left out."""


class ApiKey(Base):
    """A key of a project. Of the key itself only a keyed hash is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (sa.Index(None, "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """`key_` and the id that stands in the key."""
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    name: Mapped[str]
    digest: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    created_by: Mapped[str | None]
    """Id of the administrator's key."""
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    """To the minute."""
    revoked_at: Mapped[float | None]


class AdminKey(Base):
    """A key of an administrator: opens /v1/organization and no project."""

    __tablename__ = "admin_keys"
    __table_args__ = (sa.Index(None, "organization_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(sa.ForeignKey("organizations.id"))
    name: Mapped[str]
    digest: Mapped[str]
    created_at: Mapped[float]
    created_by: Mapped[str | None]
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class AuditEntry(Base):
    """One thing somebody did, or was refused. A trigger lets nobody change or delete it."""

    __tablename__ = "audit_log"
    __table_args__ = (sa.Index(None, "created_at", "id"), sa.Index(None, "project_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[float]
    project_id: Mapped[str | None]
    """None: an administrator's act, or nobody we know."""
    actor: Mapped[str | None]
    """Id of the key; None when there was none or a wrong one."""
    ip: Mapped[str | None]
    action: Mapped[str]
    """`project.created`, `job.cancelled`, `login.failed`, ..."""
    object_id: Mapped[str | None]
    path: Mapped[str]
    """Without the query."""
    request_id: Mapped[str]
    status: Mapped[int]
    """Of the response."""
    code: Mapped[str | None]
    """Of the error, when it was one."""


class CheckpointPermission(Base):
    """Another project may read a checkpoint and train from it. Goes with the checkpoint."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (sa.UniqueConstraint("checkpoint_id", "project_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    checkpoint_id: Mapped[str] = mapped_column(sa.ForeignKey("checkpoints.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(sa.ForeignKey("projects.id"))
    """Who may."""
    created_at: Mapped[float]
