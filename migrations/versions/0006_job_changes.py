"""Jobs that their users change and delete, and the lines that trainers print.

A deleted job's row stays for its usage, emptied: the trigger that freezes ended jobs lets that one change pass, and
still none of the state.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FROZEN = (
    "state, epoch, finished_at, error_code, error_message, error_param, error_phase, error_step, error_log, "
    "final_checkpoint_id"
)
WHEN = (
    "OLD.state IN ('succeeded', 'failed', 'cancelled') "
    "AND (NEW.deleted_at IS NULL OR NEW.state <> OLD.state OR NEW.epoch <> OLD.epoch)"
)
SQLITE_TRIGGER = f"""
CREATE TRIGGER jobs_terminal BEFORE UPDATE OF {FROZEN} ON jobs WHEN {WHEN}
BEGIN SELECT RAISE(ABORT, 'a finished job never changes'); END
"""
POSTGRESQL_TRIGGER = f"""
CREATE TRIGGER jobs_terminal BEFORE UPDATE OF {FROZEN} ON jobs
FOR EACH ROW WHEN ({WHEN}) EXECUTE FUNCTION refuse_change_of_finished_job()
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("revision", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.create_table(
        "job_logs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_logs_job_id"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_job_logs"),
    )
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute("DROP TRIGGER jobs_terminal ON jobs" if postgresql else "DROP TRIGGER jobs_terminal")
    op.execute(POSTGRESQL_TRIGGER if postgresql else SQLITE_TRIGGER)
