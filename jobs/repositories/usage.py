"""What a project has used, computed from its rows: files, attempts, completions, what judges took."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.judge_usage import TOKENS
from jobs.states import ACTIVE, State
from jobs.tables import Attempt, Completion, File, Job, JudgeUsage, Upload

DAY_S = 86_400.0


@dataclass(frozen=True)
class Span:
    """From `start` until before `end`, unix seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class JobUsage:
    """What one job used in a span."""

    job_id: str
    gpu_seconds: float
    judge_tokens: int


def clock(session: Session) -> float:
    """The database's time."""
    return session.scalars(sa.select(now())).one()


def month_of(time: float) -> Span:
    """The calendar month (UTC) a time lies in."""
    first = datetime.fromtimestamp(time, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    year, month = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return Span(first.timestamp(), first.replace(year=year, month=month).timestamp())


def days_of(span: Span) -> list[Span]:
    """The days (UTC) of a span that begins with one."""
    count = int((span.end - span.start + DAY_S - 1) // DAY_S)
    starts = [span.start + number * DAY_S for number in range(count)]
    return [Span(start, min(start + DAY_S, span.end)) for start in starts]


def gpu_seconds(session: Session, project_id: str, span: Span) -> float:
    """Accelerators times seconds of the attempts of a project in a span; one still running counts until now."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(_seconds(span) * Job.gpus), 0.0)).select_from(Attempt)
    return float(session.scalars(statement.join(Job, Job.id == Attempt.job_id).where(*_in(project_id, span))).one())


def judge_tokens(session: Session, project_id: str, span: Span) -> int:
    """Tokens judges took for a project in a span, in its jobs and in graders it ran outside of them."""
    total = sa.func.coalesce(sa.func.sum(TOKENS), 0)
    return int(session.scalars(sa.select(total).where(*_judged(project_id, span))).one())


def inference_tokens(session: Session, project_id: str, span: Span) -> int:
    """Tokens of prompts and answers of a project's chat completions that were answered in a span."""
    total: sa.ColumnElement[int] = sa.func.coalesce(
        sa.func.sum(Completion.prompt_tokens + Completion.completion_tokens), 0
    )
    when = (Completion.finished_at >= span.start, Completion.finished_at < span.end)
    return int(session.scalars(sa.select(total).where(Completion.project_id == project_id, *when)).one())


def by_job(session: Session, project_id: str, span: Span) -> list[JobUsage]:
    """What each job used in a span, the most first."""
    total = sa.func.sum(_seconds(span) * Job.gpus)
    statement = sa.select(Job.id, total).select_from(Attempt).join(Job, Job.id == Attempt.job_id)
    rows = session.execute(statement.where(*_in(project_id, span)).group_by(Job.id))
    seconds = {job_id: float(value) for job_id, value in rows}
    tokens = _tokens(session, project_id, span)
    found = [JobUsage(job_id, seconds.get(job_id, 0.0), tokens.get(job_id, 0)) for job_id in seconds.keys() | tokens]
    return sorted(found, key=lambda each: (-each.gpu_seconds, each.job_id))


def files(session: Session, project_id: str) -> tuple[int, int]:
    """How many files a project keeps or is uploading in parts, and their bytes. Results of jobs do not count."""
    total = sa.func.coalesce(sa.func.sum(File.bytes), 0)
    kept = sa.select(sa.func.count(), total).where(File.project_id == project_id, File.job_id.is_(None))
    pending = (Upload.project_id == project_id, Upload.state == "pending", Upload.expires_at > now())
    total = sa.func.coalesce(sa.func.sum(Upload.bytes), 0)
    rows = [session.execute(statement).one() for statement in (kept, sa.select(sa.func.count(), total).where(*pending))]
    return sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)


def uploaded(session: Session, project_id: str, span: Span) -> tuple[int, int]:
    """Files, of those still kept, that were uploaded in a span, and their bytes."""
    total = sa.func.coalesce(sa.func.sum(File.bytes), 0)
    when = (File.created_at >= span.start, File.created_at < span.end)
    where = (File.project_id == project_id, File.job_id.is_(None), *when)
    count, size = session.execute(sa.select(sa.func.count(), total).where(*where)).one()
    return int(count), int(size)


def jobs(session: Session, project_id: str) -> tuple[int, int]:
    """How many jobs of a project wait and run."""
    waits = Job.state.in_([State.VALIDATING, State.QUEUED])
    columns = (sa.func.count().filter(waits), sa.func.count().filter(Job.state.in_(ACTIVE)))
    waiting, running = session.execute(sa.select(*columns).where(Job.project_id == project_id)).one()
    return int(waiting), int(running)


def _seconds(span: Span) -> sa.ColumnElement[float]:
    """How long an attempt ran inside the span."""
    end = sa.func.coalesce(Attempt.ended_at, now())
    begin = sa.case((Attempt.started_at < span.start, sa.literal(span.start, sa.Double())), else_=Attempt.started_at)
    return sa.case((end > span.end, sa.literal(span.end, sa.Double())), else_=end) - begin


def _in(project_id: str, span: Span) -> tuple[sa.ColumnElement[bool], ...]:
    end = sa.func.coalesce(Attempt.ended_at, now())
    return Job.project_id == project_id, Attempt.started_at < span.end, end > span.start


def _tokens(session: Session, project_id: str, span: Span) -> dict[str, int]:
    """By job."""
    total = sa.select(JudgeUsage.job_id, sa.func.sum(TOKENS)).where(*_judged(project_id, span))
    rows = session.execute(total.group_by(JudgeUsage.job_id))
    return {job_id: int(value) for job_id, value in rows if job_id is not None}


def _judged(project_id: str, span: Span) -> tuple[sa.ColumnElement[bool], ...]:
    when = (JudgeUsage.created_at >= span.start, JudgeUsage.created_at < span.end)
    return JudgeUsage.project_id == project_id, *when
