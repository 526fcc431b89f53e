"""What judges took. It is written down, other usage is computed from rows that are there anyway: a step's metrics are
replaced when an attempt repeats the step, and graders that run outside of jobs leave no row at all."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base


class JudgeUsage(Base):
    """Tokens of judges in one step of one attempt, or in one run of a grader. Never changed; outlives its job."""

    __tablename__ = "judge_usage"
    __table_args__ = (sa.Index(None, "project_id", "created_at"), sa.Index(None, "job_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    """Of a step: made of what it is, so that one written twice is there once (`jobs.repositories.judge_usage`)."""
    project_id: Mapped[str]
    job_id: Mapped[str | None]
    """None outside of jobs."""
    created_at: Mapped[float]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
