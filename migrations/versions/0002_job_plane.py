"""Priorities, resources, failure records, the worker registry, checkpoint retention, the webhook outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# Every column added to a table with rows is nullable or has a default of the database, which neither database rewrites
# the table for.
COLUMNS: dict[str, tuple[sa.Column[object], ...]] = {
    "jobs": (
        sa.Column("request", JSON, nullable=True),
        sa.Column("source_job_id", sa.Text(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("priority", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gpus", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("gpu_type", sa.Text(), nullable=True),
        sa.Column("max_runtime_s", sa.Double(), nullable=True),
        sa.Column("queued_at", sa.Double(), nullable=True),
        sa.Column("error_phase", sa.Text(), nullable=True),
        sa.Column("error_step", sa.BigInteger(), nullable=True),
        sa.Column("error_log", sa.Text(), nullable=True),
        sa.Column("pause_code", sa.Text(), nullable=True),
        sa.Column("pause_message", sa.Text(), nullable=True),
    ),
    "job_attempts": (
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("devices", JSON, nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("resumed_step", sa.BigInteger(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_phase", sa.Text(), nullable=True),
        sa.Column("error_step", sa.BigInteger(), nullable=True),
    ),
    "checkpoints": (
        sa.Column("best", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("pinned", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("damaged", sa.Boolean(), server_default=sa.false(), nullable=False),
    ),
    "workers": (
        sa.Column("gpu_type", sa.Text(), server_default="cpu", nullable=False),
        sa.Column("gpus", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("devices", JSON, nullable=True),
        sa.Column("state", sa.Text(), server_default="idle", nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
    ),
}

# The trigger of 0001 again, with the new columns of the error.
FROZEN = (
    "state, epoch, finished_at, error_code, error_message, error_param, error_phase, error_step, error_log, "
    "final_checkpoint_id"
)
TERMINAL = "OLD.state IN ('succeeded', 'failed', 'cancelled')"
SQLITE_TRIGGER = f"""
CREATE TRIGGER jobs_terminal BEFORE UPDATE OF {FROZEN} ON jobs WHEN {TERMINAL}
BEGIN SELECT RAISE(ABORT, 'a finished job never changes'); END
"""
POSTGRESQL_TRIGGER = f"""
CREATE TRIGGER jobs_terminal BEFORE UPDATE OF {FROZEN} ON jobs
FOR EACH ROW WHEN ({TERMINAL}) EXECUTE FUNCTION refuse_change_of_finished_job()
"""


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    op.create_index("ix_jobs_project_id_state", "jobs", ["project_id", "state"], unique=False)
    op.create_index("ix_jobs_resume_checkpoint_id", "jobs", ["resume_checkpoint_id"], unique=False)
    op.execute("UPDATE jobs SET queued_at = created_at")
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute("DROP TRIGGER jobs_terminal ON jobs" if postgresql else "DROP TRIGGER jobs_terminal")
    op.execute(POSTGRESQL_TRIGGER if postgresql else SQLITE_TRIGGER)
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("last_status", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_webhook_deliveries_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
        sa.UniqueConstraint("job_id", "type", name="uq_webhook_deliveries_job_id_type"),
    )
    op.create_index("ix_webhook_deliveries_state_next_at", "webhook_deliveries", ["state", "next_at"], unique=False)
