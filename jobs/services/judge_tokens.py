"""Tokens of judges that the service itself asks: in runs of graders, and when a job's grader is tried.

They count like those of jobs, against the same quota. It is looked at before, so a run can exceed it by what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from bgpo.rewards import Grade
from bgpo.rewards.spec import AnyGraderSpec, LabelModelSpec, ScoreModelSpec
from jobs.context import Context
from jobs.repositories import judge_usage
from jobs.services import quotas
from jobs.services.grading import parts


def require(ctx: Context, project_id: str, spec: AnyGraderSpec) -> None:
    """Raises InsufficientQuota for a grader that asks judges when the project's tokens of the month are used up."""
    if any(isinstance(part, ScoreModelSpec | LabelModelSpec) for _, part in parts(spec)):
        quotas.require_judge(ctx, project_id)


def count(ctx: Context, project_id: str, grades: Sequence[Grade]) -> None:
    """Write down what these took."""
    used = [part.usage for grade in grades for part in grade.parts.values() if part.usage is not None]
    if used:
        prompt = sum(usage.prompt_tokens for usage in used)
        completion = sum(usage.completion_tokens for usage in used)
        with ctx.db.transaction() as session:
            judge_usage.add_run(session, project_id, prompt, completion)
