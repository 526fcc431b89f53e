"""What a project has used, by day and by job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.repositories import usage
from jobs.repositories.usage import DAY_S, JobUsage, Span

MAX_DAYS = 92


@dataclass(frozen=True)
class Day:
    """One day (UTC)."""

    span: Span
    gpu_seconds: float
    judge_tokens: int
    inference_tokens: int
    files: int
    file_bytes: int


@dataclass(frozen=True)
class Report:
    """A span of whole days."""

    span: Span
    days: Sequence[Day]
    jobs: Sequence[JobUsage]


def report(ctx: Context, project_id: str, start: int | None, end: int | None) -> Report:
    """Usage between two times, by default of this month until now.

    Raises:
        InvalidRequest: the end is not after the start, or there are too many days in between.
    """
    with ctx.db.read() as session:
        now = usage.clock(session)
        first = usage.month_of(now).start if start is None else float(start)
        span = Span(first - first % DAY_S, now if end is None else float(end))
        if span.end <= span.start:
            raise InvalidRequest("end_time must be later than start_time.", "end_time")
        if span.end - span.start > MAX_DAYS * DAY_S:
            raise InvalidRequest(f"At most {MAX_DAYS} days at a time.", "start_time")
        days = []
        for day in usage.days_of(span):
            seconds = usage.gpu_seconds(session, project_id, day)
            tokens = usage.judge_tokens(session, project_id, day), usage.inference_tokens(session, project_id, day)
            days.append(Day(day, seconds, *tokens, *usage.uploaded(session, project_id, day)))
        return Report(span, days, usage.by_job(session, project_id, span))
