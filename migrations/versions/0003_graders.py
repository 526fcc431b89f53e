"""Stored graders and the secrets of graders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "secrets",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_secrets"),
    )
    op.create_table(
        "graders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("latest", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_graders"),
    )
    op.create_index("ix_graders_project_id_created_at_id", "graders", ["project_id", "created_at", "id"], unique=False)
    op.create_table(
        "grader_versions",
        sa.Column("grader_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("definition", JSON, nullable=False),
        sa.ForeignKeyConstraint(["grader_id"], ["graders.id"], name="fk_grader_versions_grader_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("grader_id", "version", name="pk_grader_versions"),
    )
