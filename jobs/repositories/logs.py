"""What the trainers of a job printed: the last lines, over all attempts.

A line's number says its attempt and its place there, so writing it again changes nothing, and numbers rise from line to
line whatever attempt they are of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import jobs
from jobs.repositories.dialect import insert
from jobs.repositories.events import Level
from jobs.repositories.text import clean
from jobs.states import State
from jobs.tables import LogLine

KEPT = 5000
"""Lines of a job."""
MAX_TEXT = 2000
_OF_ATTEMPT = 2**32


def append(session: Session, job_id: str, epoch: int, first: int, lines: Sequence[tuple[Level, str]]) -> bool:
    """Store lines, the first of which is the attempt's `first`-th; False when `epoch` no longer holds the job."""
    state = jobs.hold(session, job_id, epoch)
    if state is None:
        return False
    if state == State.CANCELLING or not lines:
        return True
    rows = [
        {"seq": epoch * _OF_ATTEMPT + first + place, "level": level, "text": clean(text, MAX_TEXT)}
        for place, (level, text) in enumerate(lines)
    ]
    statement = insert(session, LogLine).on_conflict_do_nothing(index_elements=["job_id", "seq"])
    values = [row | {"job_id": job_id, "epoch": epoch, "created_at": now()} for row in rows]
    session.execute(statement.values(values))
    oldest = sa.select(LogLine.seq).where(LogLine.job_id == job_id).order_by(LogLine.seq.desc()).offset(KEPT).limit(1)
    gone = sa.delete(LogLine).where(LogLine.job_id == job_id, LogLine.seq <= oldest.scalar_subquery())
    session.execute(gone.execution_options(synchronize_session=False))
    return True


def page(
    session: Session,
    job_id: str,
    *,
    after: int = 0,
    limit: int,
    since: float | None = None,
    levels: Collection[Level] | None = None,
    last: bool = False,
) -> list[LogLine]:
    """Up to `limit` lines behind the number `after`, the first of them or, with `last`, the last; oldest first.

    Args:
        since: only lines read at this time or later, unix seconds.
        levels: only lines of one of these.
    """
    where = [LogLine.job_id == job_id, LogLine.seq > after]
    if since is not None:
        where.append(LogLine.created_at >= since)
    if levels is not None:
        where.append(LogLine.level.in_(levels))
    order = LogLine.seq.desc() if last else LogLine.seq
    rows = list(session.scalars(sa.select(LogLine).where(*where).order_by(order).limit(limit)))
    return rows[::-1] if last else rows
