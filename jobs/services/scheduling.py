"""When and where a job runs, what it may use, and who is told: the columns of a request's `rl`, checked against this
installation."""

from __future__ import annotations

from typing import Any

from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.services import webhook_requests
from jobs.tables import Job
from jobs.wire.request import PRIORITIES, BudgetBlock, PriorityName, Scheduling

PRIORITY_NAMES: dict[int, PriorityName] = {value: name for name, value in PRIORITIES.items()}


def columns(ctx: Context, wish: Scheduling) -> dict[str, Any]:
    """Values of the jobs table. Raises InvalidRequest for what this installation does not offer."""
    check_gpus(ctx, wish.resources.gpus)
    check_webhook(ctx, wish.webhook_url)
    said = {"priority": PRIORITIES[wish.priority], "webhook_url": wish.webhook_url}
    return {**said, "budget": budget_column(wish.budget), **wish.resources.model_dump()}


def budget_column(budget: BudgetBlock) -> dict[str, Any] | None:
    """As the jobs table has it: nothing, where there is no limit to exceed."""
    unlimited = budget.gpu_seconds is None and budget.judge_tokens is None
    return None if unlimited else budget.model_dump()


def of_job(job: Job) -> dict[str, Any]:
    """What `Scheduling` a job was made with, as a request says it."""
    resources = {"gpus": job.gpus, "gpu_type": job.gpu_type, "max_runtime_s": job.max_runtime_s}
    said = {"priority": PRIORITY_NAMES[job.priority], "resources": resources, "webhook_url": job.webhook_url}
    return said | {"budget": job.budget or BudgetBlock().model_dump()}


def check_gpus(ctx: Context, gpus: int) -> None:
    """Raises InvalidRequest when no job may have so many."""
    limit = ctx.settings.max_gpus
    if gpus > limit:
        raise InvalidRequest(f"rl.resources.gpus: a job can have at most {limit}.", "rl.resources.gpus")


def check_webhook(ctx: Context, url: str | None) -> None:
    """Raises InvalidRequest for a URL that no webhook may be sent to."""
    param = "rl.webhook_url"
    if url is None:
        return
    if ctx.settings.webhook_secret is None:
        raise InvalidRequest(f"{param}: this service sends no webhooks: it has no BGPO_WEBHOOK_SECRET.", param)
    webhook_requests.check(ctx.settings, url, param)
