"""The queue: which job is next, at which position a job stands, and why it waits.

One order for both, `line`: higher priority first, strictly, so a low job waits for as long as a higher one does; within
a priority the project that runs less; then who came first. A project's share counts the jobs it runs and those of its
own that are ahead. Serving a job therefore moves nobody else, and positions are the order in which jobs are served as
long as none ends, comes or goes. All reads here touch unfinished jobs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories import workers
from jobs.resources import Slot
from jobs.states import ACTIVE, State
from jobs.tables import Attempt, Job, Worker

LIVE_S = 30.0
"""A worker not seen for longer counts as gone."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits."""

    job: Job
    position: int | None
    """1 = next; None unless it is queued."""
    reason: str


@dataclass(frozen=True)
class SlotClass:
    """The live workers of one kind; each runs one job at a time."""

    gpu_type: str
    gpus: int
    """Accelerators of each of these workers."""
    total: int
    busy: int
    out: int
    """Those that take no jobs: unfit or shutting down."""


@dataclass(frozen=True)
class Snapshot:
    """The queue as one project sees it."""

    waiting: Sequence[Waiting]
    """Its own jobs that hold no worker: by position, then those that are not queued."""
    running: Sequence[Job]
    """Its own jobs that hold a worker."""
    queued_total: int
    """Queued jobs of all projects."""
    slots: Sequence[SlotClass]


def ready() -> tuple[sa.ColumnElement[bool], ...]:
    """Whether a job may be claimed now."""
    return Job.state == State.QUEUED, Job.desired == "run", Job.not_before <= now()


def line(*pool: sa.ColumnElement[bool], limited: bool = False) -> sa.Subquery:
    """The jobs of `pool` with their `place` among each other, 1 = next; also id, project_id, gpu_type and active.

    When `limited`, those that a project may not run yet stand behind all others; the limit is the parameter
    `max_running`.
    """
    other = Job.__table__.alias()
    busy = sa.select(other.c.project_id, sa.func.count().label("active")).where(other.c.state.in_(ACTIVE))
    counts = busy.group_by(other.c.project_id).subquery("busy")
    active = sa.func.coalesce(counts.c.active, 0)
    came = sa.func.coalesce(Job.queued_at, Job.created_at)
    own = sa.func.row_number().over(partition_by=Job.project_id, order_by=(Job.priority.desc(), came, Job.id))
    columns = (Job.id, Job.project_id, Job.gpu_type, Job.priority, came.label("came"), active.label("active"))
    joined = sa.select(*columns, (active + own).label("share")).where(*pool)
    jobs = joined.join(counts, counts.c.project_id == Job.project_id, isouter=True).subquery("jobs_of_pool")
    order: tuple[Any, ...] = (jobs.c.priority.desc(), jobs.c.share, jobs.c.came, jobs.c.id)
    if limited:
        order = (sa.case((jobs.c.share > sa.bindparam("max_running"), 1), else_=0), *order)
    place = sa.func.row_number().over(order_by=order).label("place")
    return sa.select(jobs.c.id, jobs.c.project_id, jobs.c.gpu_type, jobs.c.active, place).subquery("line")


def lock_next(
    session: Session, slot: Slot, *, max_running: int | None, full: Sequence[str] = ()
) -> tuple[str, str] | None:
    """Id and project of the job a worker may take next, locked; none of the projects in `full`.

    On PostgreSQL jobs that another claimer has locked are passed over. A job that cannot start (too large for this
    worker, or backing off) holds nobody of its project up.
    """
    wish = {"gpus": slot.gpus, "gpu_type": slot.gpu_type, "max_running": max_running, "full": list(full)}
    found = session.execute(_next(max_running is not None), wish).one_or_none()
    return None if found is None else (found[0], found[1])


@cache
def _next(limited: bool) -> sa.Select[str, str]:  # building it takes longer than running it
    kind = sa.or_(Job.gpu_type.is_(None), Job.gpu_type == sa.bindparam("gpu_type"))
    others = Job.project_id.not_in(sa.bindparam("full", expanding=True))
    queue = line(*ready(), Job.gpus <= sa.bindparam("gpus"), kind, others, limited=limited)
    statement = sa.select(Job.id, Job.project_id).join(queue, queue.c.id == Job.id).where(*ready())
    if limited:
        statement = statement.where(queue.c.active < sa.bindparam("max_running"))
    return statement.order_by(queue.c.place).limit(1).with_for_update(of=Job, skip_locked=True, key_share=True)


def positions(session: Session, project_id: str, *, max_running: int | None = None) -> dict[str, int]:
    """Position of each queued job of a project by id; 1 = next.

    Ahead of a job are those that a worker of its accelerator type would take first.
    """
    mine = (Job.project_id == project_id, Job.state == State.QUEUED)
    found: dict[str, int] = {}
    for kind in session.scalars(sa.select(Job.gpu_type).where(*mine).distinct()).all():
        wish = {"gpu_type": kind, "project_id": project_id, "max_running": max_running}
        statement = _positions(kind is not None, max_running is not None)
        for job_id, place in session.execute(statement, wish):
            found[job_id] = place
    return found


def position_of(session: Session, job: Job, *, max_running: int | None = None) -> int | None:
    """Position of one job, see `positions`; None unless it is queued."""
    if job.state != State.QUEUED:
        return None
    wish = {"gpu_type": job.gpu_type, "id": job.id, "max_running": max_running}
    return session.scalar(_position(job.gpu_type is not None, max_running is not None), wish)


@cache
def _positions(typed: bool, limited: bool) -> sa.Select[str, int]:
    queue = line(*_rivals(typed), limited=limited)
    kind = queue.c.gpu_type == sa.bindparam("gpu_type") if typed else queue.c.gpu_type.is_(None)
    return sa.select(queue.c.id, queue.c.place).where(queue.c.project_id == sa.bindparam("project_id"), kind)


@cache
def _position(typed: bool, limited: bool) -> sa.Select[int]:
    queue = line(*_rivals(typed), limited=limited)
    return sa.select(queue.c.place).where(queue.c.id == sa.bindparam("id"))


def _rivals(typed: bool) -> tuple[sa.ColumnElement[bool], ...]:
    """The queued jobs that want the same workers as one that asks for `gpu_type`, or for any."""
    queued = Job.state == State.QUEUED
    return (queued, sa.or_(Job.gpu_type.is_(None), Job.gpu_type == sa.bindparam("gpu_type"))) if typed else (queued,)


def running(session: Session, project_id: str) -> int:
    """Jobs of a project that hold a worker."""
    where = (Job.project_id == project_id, Job.state.in_(ACTIVE))
    return session.scalars(sa.select(sa.func.count()).select_from(Job).where(*where)).one()


def waiting(
    session: Session, job: Job, *, max_running: int | None = None, own_limit: int | None = None, live_s: float = LIVE_S
) -> Waiting | None:
    """Position of a job and why it waits, in words for its user; None when it does not wait.

    Args:
        own_limit: how many jobs its project may run, where that is fewer than `max_running`, which all may.
    """
    position = position_of(session, job, max_running=max_running)
    if position is not None:
        look = _Look.at(session, job.project_id, max_running if own_limit is None else own_limit, live_s)
        return Waiting(job, position, look.reason(job, position))
    reason = _state_reason(job)
    return None if reason is None else Waiting(job, None, reason)


def wait_reason(session: Session, job: Job, *, max_running: int | None = None, live_s: float = LIVE_S) -> str | None:
    """The reason of `waiting`."""
    found = waiting(session, job, max_running=max_running, live_s=live_s)
    return None if found is None else found.reason


def snapshot(
    session: Session,
    project_id: str,
    *,
    max_running: int | None = None,
    own_limit: int | None = None,
    live_s: float = LIVE_S,
) -> Snapshot:
    """What `GET /v1/fine_tuning/queue` shows."""
    look = _Look.at(session, project_id, max_running if own_limit is None else own_limit, live_s)
    places = positions(session, project_id, max_running=max_running)
    mine = sa.select(Job).where(Job.project_id == project_id).order_by(Job.id).execution_options(populate_existing=True)
    held = session.scalars(mine.where(Job.state.in_(ACTIVE))).all()
    waiting: list[Waiting] = []
    for job in session.scalars(mine.where(Job.state.in_([State.VALIDATING, State.QUEUED, State.PAUSED]))):
        place = places.get(job.id)
        reason = look.reason(job, place) if place is not None else _state_reason(job)
        if reason is not None:
            waiting.append(Waiting(job, place, reason))
    waiting.sort(key=lambda one: (one.position is None, one.position or 0, one.job.id))
    queued = sa.select(sa.func.count()).select_from(Job).where(Job.state == State.QUEUED)
    return Snapshot(waiting, held, session.scalars(queued).one(), _classes(look.workers))


@dataclass(frozen=True)
class _Look:
    """What reasons are found from, read once."""

    session: Session
    now: float
    workers: Sequence[Worker]
    running: int
    max_running: int | None

    @classmethod
    def at(cls, session: Session, project_id: str, max_running: int | None, live_s: float) -> _Look:
        clock = session.scalars(sa.select(now())).one()
        return cls(session, clock, workers.live(session, live_s), running(session, project_id), max_running)

    def reason(self, job: Job, position: int) -> str:
        """Why a queued job waits; what lasts longest first."""
        if job.not_before > self.now:
            return self._backoff(job)
        fitting = [one for one in self.workers if one.gpus >= job.gpus and job.gpu_type in (None, one.gpu_type)]
        if not self.workers:
            return "No worker is connected."
        if not fitting:
            return f"No connected worker has {_resources(job)}."
        takers = [one for one in fitting if one.state in ("idle", "busy")]
        if not takers:
            return self._unfit(fitting)
        if self.max_running is not None and self.running >= self.max_running:
            return f"The project runs {_count(self.running, 'job')}, as many as it may at once."
        ahead = position - 1
        return f"Waits for a free worker; {_count(ahead, 'job')} ahead." if ahead else "Next; waits for a free worker."

    def _backoff(self, job: Job) -> str:
        until = datetime.fromtimestamp(job.not_before, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        last = self.session.get(Attempt, (job.id, job.epoch))
        why = last.error_message.rstrip(".") if last is not None and last.error_message else None
        return f"Starts again at {until}, after a failed attempt: {why}." if why else f"Starts again at {until}."

    @staticmethod
    def _unfit(fitting: Sequence[Worker]) -> str:
        problems = sorted({one.problem for one in fitting if one.problem})
        if problems:
            return f"The workers that could run it take no jobs: {'; '.join(problems)}."
        return "The workers that could run it are shutting down."


def _state_reason(job: Job) -> str | None:
    if job.state == State.VALIDATING:
        return "Its files are being checked."
    if job.state == State.PAUSING:
        return "Pausing: waits for a checkpoint."
    if job.state == State.PAUSED:
        return f"Paused by the service: {job.pause_message}" if job.pause_code else "Paused; resume it to go on."
    return None


def _classes(live: Sequence[Worker]) -> list[SlotClass]:
    kinds = sorted({(one.gpu_type, one.gpus) for one in live})
    states = {kind: [one.state for one in live if (one.gpu_type, one.gpus) == kind] for kind in kinds}
    return [
        SlotClass(kind, gpus, len(each), each.count("busy"), sum(state not in ("idle", "busy") for state in each))
        for (kind, gpus), each in states.items()
    ]


def _resources(job: Job) -> str:
    count = _count(job.gpus, "accelerator")
    return count if job.gpu_type is None else f"{count} of type {job.gpu_type}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
