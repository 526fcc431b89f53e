"""Evaluations and exports: rows of the jobs table of another kind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.Text(), server_default="train", nullable=False))
    op.create_index("ix_jobs_project_id_kind_created_at_id", "jobs", ["project_id", "kind", "created_at", "id"])
    op.drop_index("ix_jobs_project_id_created_at_id", table_name="jobs")
    op.create_index("ix_jobs_source_job_id", "jobs", ["source_job_id"])
