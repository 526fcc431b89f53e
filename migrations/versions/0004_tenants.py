"""Organisations, projects, keys, shared checkpoints and the audit log, which triggers keep append-only."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

SQLITE_TRIGGERS = (
    """
CREATE TRIGGER audit_log_update BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
""",
    """
CREATE TRIGGER audit_log_delete BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
""",
)
POSTGRESQL_TRIGGERS = (
    """
CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$
""",
    """
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION refuse_change_of_audit_log()
""",
)


def upgrade() -> None:
    _projects()
    _keys()
    _audit_log()
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_checkpoint_permissions_checkpoint_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_checkpoint_permissions_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint_permissions"),
        sa.UniqueConstraint("checkpoint_id", "project_id", name="uq_checkpoint_permissions_checkpoint_id_project_id"),
    )


def _projects() -> None:
    organizations = op.create_table(
        "organizations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
    )
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("archived_at", sa.Double(), nullable=True),
        sa.Column("limits", JSON, nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name="fk_projects_organization_id"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    _index("projects", "organization_id", "created_at", "id")
    now = time.time()
    op.bulk_insert(organizations, [{"id": "org-default", "name": "Default organization", "created_at": now}])
    first = {"id": "proj_default", "organization_id": "org-default", "name": "Default project", "created_at": now}
    op.bulk_insert(projects, [first | {"archived_at": None, "limits": {}}])


def _keys() -> None:
    for table, owner, owners, more in (
        ("api_keys", "project_id", "projects", [sa.Column("scopes", JSON, nullable=False)]),
        ("admin_keys", "organization_id", "organizations", []),
    ):
        op.create_table(
            table,
            sa.Column("id", sa.Text(), nullable=False),
            sa.Column(owner, sa.Text(), nullable=False),
            sa.Column("name", sa.Text(), nullable=False),
            sa.Column("digest", sa.Text(), nullable=False),
            *more,
            sa.Column("created_at", sa.Double(), nullable=False),
            sa.Column("created_by", sa.Text(), nullable=True),
            sa.Column("expires_at", sa.Double(), nullable=True),
            sa.Column("last_used_at", sa.Double(), nullable=True),
            sa.Column("revoked_at", sa.Double(), nullable=True),
            sa.ForeignKeyConstraint([owner], [f"{owners}.id"], name=f"fk_{table}_{owner}"),
            sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        )
        _index(table, owner, "created_at", "id")


def _audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    _index("audit_log", "created_at", "id")
    _index("audit_log", "project_id", "created_at", "id")
    postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in POSTGRESQL_TRIGGERS if postgresql else SQLITE_TRIGGERS:
        op.execute(statement)


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns), unique=False)
