"""Usage and quotas of a project on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.services.quotas import Quota
from jobs.services.usage import Report


class DayObject(BaseModel):
    """One day (UTC)."""

    start_time: int
    end_time: int
    gpu_seconds: float
    judge_tokens: int = Field(description="Of jobs, and of graders run outside of them.")
    inference_tokens: int = Field(description="Prompts and answers of chat completions; known for 93 days.")
    files: int = Field(description="Uploaded that day and still kept.")
    file_bytes: int = Field(description="Of those files.")


class JobUsageObject(BaseModel):
    """One job."""

    job: str
    gpu_seconds: float
    judge_tokens: int


class UsageObject(BaseModel):
    """What a project has used."""

    object: Literal["usage"] = "usage"
    project_id: str
    start_time: int
    end_time: int
    gpu_seconds: float = Field(
        description="Accelerators times seconds; a CPU worker's processes count as accelerators."
    )
    judge_tokens: int
    inference_tokens: int
    days: list[DayObject]
    jobs: list[JobUsageObject] = Field(description="The most first.")


class QuotaLine(BaseModel):
    """One quota."""

    limit: int | None = Field(description="null = no limit.")
    used: int
    remaining: int | None


class QuotaObject(BaseModel):
    """How much of its quotas a project has used."""

    object: Literal["quota"] = "quota"
    project_id: str
    quotas: dict[str, QuotaLine]


def usage_object(project_id: str, found: Report) -> UsageObject:
    """A report as the wire has it."""
    days = [
        DayObject(
            start_time=int(day.span.start),
            end_time=int(day.span.end),
            gpu_seconds=day.gpu_seconds,
            judge_tokens=day.judge_tokens,
            inference_tokens=day.inference_tokens,
            files=day.files,
            file_bytes=day.file_bytes,
        )
        for day in found.days
    ]
    return UsageObject(
        project_id=project_id,
        start_time=int(found.span.start),
        end_time=int(found.span.end),
        gpu_seconds=sum(day.gpu_seconds for day in days),
        judge_tokens=sum(day.judge_tokens for day in days),
        inference_tokens=sum(day.inference_tokens for day in days),
        days=days,
        jobs=[
            JobUsageObject(job=each.job_id, gpu_seconds=each.gpu_seconds, judge_tokens=each.judge_tokens)
            for each in found.jobs
        ],
    )


def quota_object(project_id: str, found: dict[str, Quota]) -> QuotaObject:
    """Quotas as the wire has them."""
    return QuotaObject(project_id=project_id, quotas={name: _line(quota) for name, quota in found.items()})


def _line(quota: Quota) -> QuotaLine:
    remaining = None if quota.limit is None else max(quota.limit - quota.used, 0)
    return QuotaLine(limit=quota.limit, used=quota.used, remaining=remaining)
