"""/v1/usage and /v1/quota: what the caller's project has used, and may use yet."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Ctx, ReadsJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.usage import QuotaObject, UsageObject, quota_object, usage_object
from jobs.services import quotas, usage

router = APIRouter(prefix="/v1", tags=["Usage"], responses=RESPONSES, route_class=JsonRoute)
_LATEST = 4_102_444_800  # 2100
Time = Annotated[int | None, Query(ge=0, le=_LATEST, description="Unix seconds.")]


@router.get("/usage")
def show_usage(ctx: Ctx, project: ReadsJobs, start_time: Time = None, end_time: Time = None) -> UsageObject:
    """Accelerator-seconds, tokens and uploads by day (UTC), and by job; by default of this month."""
    return usage_object(project, usage.report(ctx, project, start_time, end_time))


@router.get("/quota")
def show_quota(ctx: Ctx, project: ReadsJobs) -> QuotaObject:
    """The project's quotas and how much of each is used. Budgets begin anew with each month (UTC)."""
    return quota_object(project, quotas.overview(ctx, project))
