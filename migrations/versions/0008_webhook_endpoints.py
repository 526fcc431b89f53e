"""Webhook endpoints: rows of a project, and deliveries that go to one instead of a job's own URL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
TABLE = "webhook_deliveries"


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", JSON, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("secret_hint", sa.Text(), nullable=False),
        sa.Column("old_ciphertext", sa.Text(), nullable=True),
        sa.Column("old_key_id", sa.Text(), nullable=True),
        sa.Column("old_until", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    listed = ["project_id", "created_at", "id"]
    op.create_index("ix_webhook_endpoints_project_id_created_at_id", "webhook_endpoints", listed, unique=False)
    _deliveries()


def _deliveries() -> None:
    unique = "uq_webhook_deliveries_job_id_type"
    with op.batch_alter_table(TABLE) as table:  # SQLite can drop neither a constraint nor a NOT NULL in place
        table.add_column(sa.Column("endpoint_id", sa.Text(), nullable=True))
        table.alter_column("url", existing_type=sa.Text(), nullable=True)
        table.drop_constraint(unique, type_="unique")
        table.create_unique_constraint(f"{unique}_endpoint_id", ["job_id", "type", "endpoint_id"])
        table.create_foreign_key(
            "fk_webhook_deliveries_endpoint_id", "webhook_endpoints", ["endpoint_id"], ["id"], ondelete="CASCADE"
        )
    own = sa.text("endpoint_id IS NULL")
    op.create_index(
        "ix_webhook_deliveries_job_id_type",
        TABLE,
        ["job_id", "type"],
        unique=True,
        postgresql_where=own,
        sqlite_where=own,
    )
    op.create_index("ix_webhook_deliveries_endpoint_id", TABLE, ["endpoint_id"], unique=False)
