"""What judges took, by step; completions by project and time; budgets of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# Until now only metrics told it: of a step that was repeated, what it took the last time.
_TOLD = """
INSERT INTO judge_usage (id, project_id, job_id, created_at, prompt_tokens, completion_tokens)
SELECT m.job_id || '.' || m.epoch || '.' || m.step || '.' || m.split, j.project_id, m.job_id, max(m.created_at),
       CAST(sum(CASE WHEN m.name LIKE '%/prompt' THEN m.value ELSE 0 END) AS BIGINT),
       CAST(sum(CASE WHEN m.name LIKE '%/completion' THEN m.value ELSE 0 END) AS BIGINT)
FROM job_metrics m JOIN jobs j ON j.id = m.job_id
WHERE m.name LIKE 'judge_tokens/%' OR m.name LIKE 'sampled_judge_tokens/%' OR m.name LIKE 'greedy_judge_tokens/%'
GROUP BY m.job_id, m.epoch, m.step, m.split, j.project_id
"""


def upgrade() -> None:
    op.create_table(
        "judge_usage",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_judge_usage"),
    )
    op.create_index("ix_judge_usage_project_id_created_at", "judge_usage", ["project_id", "created_at"], unique=False)
    op.create_index("ix_judge_usage_job_id", "judge_usage", ["job_id"], unique=False)
    op.execute(sa.text(_TOLD))
    op.add_column("jobs", sa.Column("budget", JSON, nullable=True))
    op.create_index("ix_completions_project_id_finished_at", "completions", ["project_id", "finished_at"], unique=False)
