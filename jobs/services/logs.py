"""What a job's trainers printed, for its users."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from jobs.context import Context
from jobs.repositories import logs
from jobs.repositories.events import Level
from jobs.services.jobs import find
from jobs.services.paging import Page, cut
from jobs.states import State
from jobs.tables import LogLine


def page(
    ctx: Context,
    project_id: str,
    job_id: str,
    *,
    after: int,
    limit: int,
    since: float | None,
    levels: Collection[Level] | None,
) -> Page[LogLine]:
    """Lines, oldest first. Raises NotFound."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        found = logs.page(session, job_id, after=after, limit=limit + 1, since=since, levels=levels)
    return cut(found, limit)


def tail(
    ctx: Context, project_id: str, job_id: str, *, count: int, since: float | None, levels: Collection[Level] | None
) -> Page[LogLine]:
    """The last `count` lines, oldest first. Raises NotFound."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        return Page(logs.page(session, job_id, limit=count, since=since, levels=levels, last=True), False)


def behind(ctx: Context, project_id: str, job_id: str, after: int, limit: int) -> tuple[State, Sequence[LogLine]]:
    """The job's state and then the next lines: of a state that is over none can be missing. Raises NotFound."""
    with ctx.db.read() as session:
        state = State(find(session, project_id, job_id).state)
        return state, logs.page(session, job_id, after=after, limit=limit)
