"""Quotas of a project: whether one more job or file fits, and pausing what runs beyond a month's budget.

Counts are taken under a lock of the project in the transaction that adds something, so two requests cannot both take
the last place. A budget can only be overrun by what is running when it ends: the reconciler looks each round, and the
jobs pause at their next step with a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import InsufficientQuota
from jobs.failures import JobError
from jobs.limits import ProjectLimits
from jobs.repositories import budgets, job_rows, projects, usage
from jobs.repositories.dialect import lock_project

BUDGETS = ("gpu_seconds_per_month", "judge_tokens_per_month")


@dataclass(frozen=True)
class Quota:
    """A limit and how much of it is used."""

    limit: int | None
    used: int


def limits_of(ctx: Context, session: Session, project_id: str) -> ProjectLimits:
    """What holds for a project: its own limits over those of the installation."""
    return projects.limits(session, project_id).over(ctx.settings)


def project_limits(ctx: Context, project_id: str) -> ProjectLimits:
    """The same with a session of its own."""
    with ctx.db.read() as session:
        return limits_of(ctx, session, project_id)


def require_job(ctx: Context, session: Session, project_id: str) -> None:
    """Refuse one more waiting job, or any when a month's budget is used up. Raises InsufficientQuota."""
    limits = limits_of(ctx, session, project_id)
    waiting = job_rows.count_queued(session, project_id)
    if limits.queued_jobs is not None and waiting >= limits.queued_jobs:
        limit = limits.queued_jobs
        raise InsufficientQuota(f"{limit} jobs wait already, which is the limit: wait for one to start, or cancel one.")
    if (used_up := over_budget(session, project_id, limits)) is not None:
        raise _insufficient(used_up)


def require_own_budget(session: Session, job_id: str) -> None:
    """Refuse to go on with a job whose own budget is used up. Raises InsufficientQuota."""
    used_up = budgets.exceeded(session, job_id)
    if used_up is not None:
        name, words = used_up
        message = f"{words[0].upper()}{words[1:]}: raise rl.budget.{name} first, with PATCH."
        raise InsufficientQuota(message, f"rl.budget.{name}")


def require_file(ctx: Context, session: Session, project_id: str, size: int) -> None:
    """Refuse one more file of `size` bytes. Raises InsufficientQuota."""
    limits = limits_of(ctx, session, project_id)
    if limits.files is None and limits.file_bytes is None:
        return
    lock_project(session, "files", project_id)
    count, kept = usage.files(session, project_id)
    if limits.files is not None and count >= limits.files:
        raise InsufficientQuota(f"The project keeps {count} files, and may keep {limits.files}: delete some first.")
    if limits.file_bytes is not None and kept + size > limits.file_bytes:
        message = f"The project's files take {kept} bytes; {size} more would exceed its limit of {limits.file_bytes}."
        raise InsufficientQuota(f"{message} Delete some first.")


def over_budget(session: Session, project_id: str, limits: ProjectLimits) -> str | None:
    """Which budget of this month is used up, in words; None while there is some left."""
    month = usage.month_of(usage.clock(session))
    if (limit := limits.gpu_seconds_per_month) is not None:
        used = usage.gpu_seconds(session, project_id, month)
        if used >= limit:
            return f"the project has used {used:.0f} of its {limit} accelerator-seconds of this month"
    return _judges_over_budget(session, project_id, limits)


def require_judge(ctx: Context, project_id: str) -> None:
    """Refuse to ask judges when the month's tokens are used up. Raises InsufficientQuota."""
    with ctx.db.read() as session:
        used_up = _judges_over_budget(session, project_id, limits_of(ctx, session, project_id))
    if used_up is not None:
        raise _insufficient(used_up)


def require_inference(ctx: Context, session: Session, project_id: str) -> None:
    """Refuse one more completion when the month's tokens are used up. Raises InsufficientQuota."""
    limit = limits_of(ctx, session, project_id).inference_tokens_per_month
    if limit is None:
        return
    tokens = usage.inference_tokens(session, project_id, usage.month_of(usage.clock(session)))
    if tokens >= limit:
        raise _insufficient(f"the project has used {tokens} of its {limit} inference tokens of this month")


def _judges_over_budget(session: Session, project_id: str, limits: ProjectLimits) -> str | None:
    if (limit := limits.judge_tokens_per_month) is None:
        return None
    tokens = usage.judge_tokens(session, project_id, usage.month_of(usage.clock(session)))
    return None if tokens < limit else f"the project has used {tokens} of its {limit} judge tokens of this month"


def _insufficient(used_up: str) -> InsufficientQuota:
    return InsufficientQuota(f"{used_up[0].upper()}{used_up[1:]}. Wait for the next month, or ask for a higher limit.")


def hold_budgets(session: Session) -> list[str]:
    """Pause jobs whose own budget is used up, and those of projects whose is; their ids. For the reconciler."""
    paused = budgets.pause_overrunning(session)
    for project_id, limits in projects.limited(session, *BUDGETS):
        used_up = over_budget(session, project_id, limits)
        if used_up is not None:
            paused += budgets.pause(session, project_id, JobError(budgets.EXCEEDED, used_up))
    return paused


def overview(ctx: Context, project_id: str) -> dict[str, Quota]:
    """Every quota of a project."""
    with ctx.db.read() as session:
        limits = limits_of(ctx, session, project_id)
        month = usage.month_of(usage.clock(session))
        count, size = usage.files(session, project_id)
        waiting, running = usage.jobs(session, project_id)
        seconds = usage.gpu_seconds(session, project_id, month)
        tokens = usage.judge_tokens(session, project_id, month)
        chat_tokens = usage.inference_tokens(session, project_id, month)
    return {
        "files": Quota(limits.files, count),
        "file_bytes": Quota(limits.file_bytes, size),
        "queued_jobs": Quota(limits.queued_jobs, waiting),
        "running_jobs": Quota(limits.running_jobs, running),
        "gpu_seconds_per_month": Quota(limits.gpu_seconds_per_month, int(seconds)),
        "judge_tokens_per_month": Quota(limits.judge_tokens_per_month, tokens),
        "inference_tokens_per_month": Quota(limits.inference_tokens_per_month, chat_tokens),
    }
