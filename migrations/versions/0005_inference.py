"""Chat completions and the processes that answer them; jobs that start from tuned models; deleted tuned models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
JOB_COLUMNS: tuple[sa.Column[object], ...] = (  # nullable, so neither database rewrites the table
    sa.Column("base_model", sa.Text(), nullable=True),
    sa.Column("start_checkpoint_id", sa.Text(), nullable=True),
    sa.Column("lineage", JSON, nullable=True),
    sa.Column("tuned_model_deleted_at", sa.Double(), nullable=True),
)


def upgrade() -> None:
    for column in JOB_COLUMNS:
        op.add_column("jobs", column)
    op.create_index("ix_jobs_start_checkpoint_id", "jobs", ["start_checkpoint_id"], unique=False)
    op.create_table(
        "completions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=True),
        sa.Column("batch_key", sa.Text(), nullable=True),
        sa.Column("request", JSON, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("deadline", sa.Double(), nullable=False),
        sa.Column("blocks", sa.BigInteger(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_param", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_completions"),
    )
    op.create_index("ix_completions_state_created_at", "completions", ["state", "created_at"], unique=False)
    op.create_index("ix_completions_project_id_state", "completions", ["project_id", "state"], unique=False)
    op.create_index("ix_completions_finished_at", "completions", ["finished_at"], unique=False)
    op.create_table(
        "completion_blocks",
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name="fk_completion_blocks_completion_id"),
        sa.PrimaryKeyConstraint("completion_id", "seq", name="pk_completion_blocks"),
    )
    op.create_table(
        "generators",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("models", JSON, nullable=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generators"),
    )
