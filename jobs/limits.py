"""What a project may use: its own limits where an administrator set some, else those of the installation.

A limit that neither sets does not exist. Running jobs are the exception: a project can be held below the
installation's `max_running_jobs`, never above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from jobs.settings import Settings

_MOST = 2**53
Limit = Annotated[int | None, Field(ge=0, le=_MOST)]
Rate = Annotated[int | None, Field(ge=1, le=10_000_000)]


class ProjectLimits(BaseModel):
    """The limits of a project; null means the installation's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    files: Limit = Field(None, description="Files kept at a time.")
    file_bytes: Limit = Field(None, description="Bytes of those files together.")
    queued_jobs: Limit = Field(None, description="Jobs that may wait.")
    running_jobs: Limit = Field(None, description="Jobs that may run; at most the installation's limit.")
    gpu_seconds_per_month: Limit = Field(
        None, description="Accelerator-seconds of all attempts in a calendar month (UTC). Exceeding it pauses jobs."
    )
    judge_tokens_per_month: Limit = Field(None, description="Tokens of judges in a month; exceeding it pauses jobs.")
    inference_tokens_per_month: Limit = Field(None, description="Tokens of prompts and answers of chats in a month.")
    read_requests_per_minute: Rate = None
    write_requests_per_minute: Rate = None
    inference_requests_per_minute: Rate = None
    inference_tokens_per_minute: Rate = None

    @classmethod
    def stored(cls, values: Mapping[str, Any] | None) -> Self:
        """From the column `limits`."""
        return cls.model_validate(values or {})

    def over(self, settings: Settings) -> Self:
        """These limits, and the installation's where these say nothing."""
        most = [limit for limit in (self.running_jobs, settings.max_running_jobs) if limit is not None]
        given = {
            "queued_jobs": settings.max_queued_jobs,
            "read_requests_per_minute": settings.rate_read,
            "write_requests_per_minute": settings.rate_write,
            "inference_requests_per_minute": settings.rate_inference,
            "inference_tokens_per_minute": settings.rate_inference_tokens,
        }
        own = self.model_dump(exclude_none=True)
        return self.model_validate(given | own | {"running_jobs": min(most) if most else None})
