"""Jobs for their users: read, list, cancel, pause, resume, and what a job has told so far. `create` makes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import NotFound
from jobs.ids import CHECKPOINT, is_id
from jobs.repositories import attempts, checkpoints, events, job_rows, samples
from jobs.services.paging import Page, cut, require_start
from jobs.services.quotas import require_job, require_own_budget
from jobs.services.ringing import note, ring
from jobs.states import State
from jobs.tables import Attempt, Checkpoint, Event, Job, Sample


def get(ctx: Context, project_id: str, job_id: str) -> Job:
    """One job. Raises NotFound."""
    with ctx.db.read() as session:
        return find(session, project_id, job_id)


def page(
    ctx: Context,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    tags: Mapping[str, str],
    untagged: bool,
    states: Collection[State] | None = None,
    model: str | None = None,
) -> Page[Job]:
    """Jobs, newest first. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = job_rows.get(session, project_id, after) if after is not None else None
        require_start(after, start)
        found = job_rows.page(
            session,
            project_id,
            after=start,
            limit=limit + 1,
            tags=tags,
            untagged=untagged,
            states=states,
            model=model,
        )
    return cut(found, limit)


def cancel(ctx: Context, project_id: str, job_id: str) -> Job:
    """Cancel a job; clients see it cancelled at once. Raises NotFound, InvalidState."""
    return _change(ctx, project_id, job_id, job_rows.cancel)


def pause(ctx: Context, project_id: str, job_id: str) -> Job:
    """Pause a job after its next checkpoint. Raises NotFound, InvalidState."""
    return _change(ctx, project_id, job_id, job_rows.pause)


def resume(ctx: Context, project_id: str, job_id: str) -> Job:
    """Queue a paused job. Raises NotFound, InvalidState, InsufficientQuota."""

    def change(session: Session, project_id: str, job_id: str) -> Job | None:
        job = job_rows.get(session, project_id, job_id)
        if job is not None and job.state == State.PAUSED:
            require_job(ctx, session, project_id)
            require_own_budget(session, job_id)
        job = job_rows.resume(session, project_id, job_id)
        if job is not None and job.state == State.QUEUED:
            note(session, job)
        return job

    job = _change(ctx, project_id, job_id, change)
    if job.state == State.QUEUED:
        ring(ctx, job)
    return job


def events_page(ctx: Context, project_id: str, job_id: str, *, after: str | None, limit: int) -> Page[Event]:
    """Events, newest first."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        start = events.seq_of(session, job_id, after) if after is not None else None
        require_start(after, start)
        return cut(events.page(session, job_id, before_seq=start, limit=limit + 1), limit)


def event_seq(ctx: Context, project_id: str, job_id: str, event_id: str | None) -> int:
    """Where a stream that has seen `event_id` goes on. Raises NotFound, InvalidRequest."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        start = events.seq_of(session, job_id, event_id) if event_id is not None else 0
        require_start(event_id, start)
    return start or 0


def events_since(
    ctx: Context, project_id: str, job_id: str, after_seq: int, limit: int
) -> tuple[State, Sequence[Event]]:
    """The job's state and then the next events, oldest first: of a state that is over no event can be missing."""
    with ctx.db.read() as session:
        state = State(find(session, project_id, job_id).state)
        return state, events.since(session, job_id, after_seq, limit)


def metrics_since(
    ctx: Context, project_id: str, job_id: str, after_seq: int, limit: int
) -> tuple[State, Sequence[Event], int]:
    """The same of events about metrics: each step of a split has one, however often it is replayed.

    And the seq behind which to go on: of the last one, or, when these are all, of the last event of any kind, so that
    whoever has them all goes on from the same place.
    """
    with ctx.db.read() as session:
        job = find(session, project_id, job_id)
        found = events.metrics_since(session, job_id, after_seq, limit)
    last = found[-1].seq if found else after_seq
    return State(job.state), found, last if len(found) == limit else max(last, job.event_seq)


def checkpoints_page(ctx: Context, project_id: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
    """Checkpoints, newest step first."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        start = checkpoints.get(session, project_id, after) if after is not None else None
        require_start(after, start if start is not None and start.job_id == job_id else None)
        return cut(checkpoints.page(session, job_id, after=start, limit=limit + 1), limit)


def checkpoint(ctx: Context, project_id: str, checkpoint_id: str) -> Checkpoint:
    """One checkpoint, the project's own or shared with it. Raises NotFound."""
    with ctx.db.read() as session:
        found = checkpoints.readable(session, project_id, checkpoint_id) if is_id(CHECKPOINT, checkpoint_id) else None
    if found is None:
        raise NotFound(f"No such checkpoint: {checkpoint_id}", "id")
    return found


def pin_checkpoint(ctx: Context, project_id: str, checkpoint_id: str, pinned: bool) -> Checkpoint:
    """Keep a checkpoint until it is unpinned, or leave it to retention again. Raises NotFound."""
    with ctx.db.transaction() as session:
        found = checkpoints.set_pinned(session, project_id, checkpoint_id, pinned)
    if found is None:
        raise NotFound(f"No such checkpoint: {checkpoint_id}", "id")
    return found


def attempts_page(ctx: Context, project_id: str, job_id: str, *, after: str | None, limit: int) -> Page[Attempt]:
    """Attempts, newest first; `after` is the number of one."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        rows = attempts.of_job(session, job_id)[::-1]  # at most a few
    if after is not None:
        start = next((index for index, row in enumerate(rows) if str(row.epoch) == after), None)
        require_start(after, start)
        rows = rows[(start or 0) + 1 :]
    return cut(rows, limit)


def samples_page(
    ctx: Context,
    project_id: str,
    job_id: str,
    *,
    after: tuple[int, str, int] | None,
    limit: int,
    step: int | None,
    split: str | None,
    min_reward: float | None,
) -> Page[Sample]:
    """Logged rollouts, newest step first."""
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        found = samples.page(
            session, job_id, after=after, limit=limit + 1, step=step, split=split, min_reward=min_reward
        )
    return cut(found, limit)


def find(session: Session, project_id: str, job_id: str) -> Job:
    """One job. Raises NotFound."""
    job = job_rows.get(session, project_id, job_id)
    if job is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", "id")
    return job


def _change(ctx: Context, project_id: str, job_id: str, change: Callable[[Session, str, str], Job | None]) -> Job:
    with ctx.db.transaction() as session:
        job = change(session, project_id, job_id)
    if job is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", "id")
    return job
