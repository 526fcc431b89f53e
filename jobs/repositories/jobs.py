"""Jobs as workers and the reconciler see them: lease, records, ends, deadlines. `job_rows` has the users' side.

Each function is one or a few conditional UPDATEs guarded by the epoch; no row changed means that another worker has the
job (or nobody may have it any more), and the caller must stop. Transitions take their source states from
`jobs.states`; claims are in `claims`, the order of the queue in `queue`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.failures import JobError, canonical, explain, may_retry
from jobs.kinds import Kind
from jobs.repositories import attempts, budgets, events, files, queue
from jobs.repositories.attempts import start as start_attempt
from jobs.repositories.claims import Claim, claim, claim_next
from jobs.repositories.text import clean
from jobs.repositories.transitions import hold, move
from jobs.resources import Bell
from jobs.states import ACTIVE, Actor, State, allowed
from jobs.tables import Checkpoint, Event, Job

__all__ = [
    "Claim",
    "JobError",
    "claim",
    "claim_next",
    "desired",
    "expire",
    "finish",
    "hand_back",
    "hold",
    "made_progress",
    "mark_rung",
    "move",
    "reap",
    "renew",
    "set_phase",
    "start_attempt",
    "to_ring",
]
MAX_TEXT = 8192
"""Characters of an error message."""


def renew(session: Session, job_id: str, epoch: int, lease_s: float) -> str | None:
    """Extend the lease; what the user wants ("run", "pause", "cancel"), or None when the job is not ours any more."""
    desired: str | None = _write(session, job_id, epoch, Job.desired, lease_until=now() + lease_s)
    return desired


def desired(session: Session, job_id: str, epoch: int) -> str | None:
    """What `renew` returns, without renewing: cheap enough to ask each second."""
    where = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    return session.scalar(sa.select(Job.desired).where(*where))


def set_phase(session: Session, job_id: str, epoch: int, phase: str, step: int) -> bool:
    """Record what the run does now; False when the job is not ours any more."""
    return _write(session, job_id, epoch, Job.id, phase=phase, last_step=step) is not None


def finish(
    session: Session,
    job_id: str,
    epoch: int,
    state: State | str,
    *,
    error: JobError | None = None,
    exit_code: int | None = None,
    signal: int | None = None,
) -> bool:
    """End the run as succeeded, failed, cancelled or paused; False when the job is not ours any more.

    A job being cancelled becomes cancelled, whatever the run came to. One that pauses because of its own budget
    succeeds with what it has, where that is to stop it. `succeeded` needs a final checkpoint, `failed` an error, and
    so does `paused` when nobody asked for it: then the service pauses the job because of it.
    """
    current, target = hold(session, job_id, epoch), State(state)
    if current is None:
        return False
    if current == State.CANCELLING:
        target = State.CANCELLED
    if not allowed(current, target, Actor.WORKER):
        raise ValueError(f"a worker cannot end a {current} job as {target}")
    error = _known(error)
    if error is None and (target == State.FAILED or (current, target) == (State.RUNNING, State.PAUSED)):
        raise ValueError(f"a {current} job needs an error to become {target}")
    if target == State.FAILED and error is not None:
        _fail(session, job_id, Actor.WORKER, error)
    elif target == State.PAUSED and (over := budgets.stops(session, job_id)) is not None:
        target = _stop(session, job_id, JobError(budgets.EXCEEDED, over))
    elif target == State.PAUSED:
        _pause(session, job_id, current, error)
    else:
        _end(session, job_id, target, Actor.WORKER, pause_code=None, pause_message=None)
    attempts.close(session, job_id, epoch, target, error=error, exit_code=exit_code, signal=signal)
    return True


def hand_back(
    session: Session,
    job_id: str,
    epoch: int,
    *,
    error: JobError,
    spend_attempt: bool,
    not_before_s: float = 0,
    exit_code: int | None = None,
    signal: int | None = None,
) -> bool:
    """Give the job up because of `error`, to go on from its last checkpoint; False when it is not ours any more.

    It fails instead when trying again cannot help: by the error's code, out of memory twice at one step with no
    checkpoint in between, no runtime left, or, with `spend_attempt` (a crash, not a drain), no attempt left. A job
    being cancelled becomes cancelled; one being paused becomes paused unless trying again could never help.
    """
    current = hold(session, job_id, epoch)
    if current is None:
        return False
    error = replace(error, code=canonical(error.code))
    outcome = _release(session, job_id, current, Actor.WORKER, error, spend_attempt, not_before_s)
    attempts.close(session, job_id, epoch, outcome, error=error, exit_code=exit_code, signal=signal)
    return True


def reap(session: Session, reap_after_s: float, *, limit: int = 50) -> list[str]:
    """Take jobs from workers whose lease ended more than `reap_after_s` ago; their ids."""
    expired = (Job.state.in_(ACTIVE), Job.lease_until < now() - reap_after_s)
    columns = (Job.id, Job.state, Job.epoch, Job.lease_until)
    statement = sa.select(*columns).where(*expired).order_by(Job.lease_until).limit(limit)
    rows = list(session.execute(statement.with_for_update(skip_locked=True, key_share=True)))
    for job_id, state, epoch, lease_until in rows:
        error = JobError("worker_lost", "the worker was lost")
        attempts.lost(session, job_id, epoch, lease_until or 0.0)
        outcome = _release(session, job_id, State(state), Actor.RECONCILER, error, True, 0)
        attempts.close(session, job_id, epoch, outcome, error=error)
    return [job_id for job_id, _, _, _ in rows]


def expire(session: Session, max_queue_age_s: float | None, *, grace_s: float = 600, limit: int = 50) -> list[str]:
    """Fail jobs that waited or ran for longer than they may; their ids.

    Args:
        max_queue_age_s: longest wait in the queue since a user or an interruption put the job there; None = any.
        grace_s: a running job's worker ends it at its deadline; this long after it the worker is taken for broken.
    """
    used_up = sa.and_(Job.max_runtime_s.is_not(None), attempts.runtime_s() >= Job.max_runtime_s)
    overdue = sa.and_(Job.max_runtime_s.is_not(None), attempts.runtime_s() >= Job.max_runtime_s + grace_s)
    cases = [
        sa.and_(Job.state == State.QUEUED, used_up),
        sa.and_(Job.state.in_([State.RUNNING, State.PAUSING]), overdue),
    ]
    if max_queue_age_s is not None:
        waits = Job.state.in_([State.VALIDATING, State.QUEUED])
        cases.append(sa.and_(waits, attempts.waiting_since() < now() - max_queue_age_s))
    statement = sa.select(Job, used_up.label("used_up")).where(sa.or_(*cases)).order_by(Job.id).limit(limit)
    statement = statement.with_for_update(of=Job, skip_locked=True, key_share=True)
    expired = list(session.execute(statement.execution_options(populate_existing=True)))
    for job, over in expired:
        error = _deadline(job.max_runtime_s, job.last_step) if over else _waited(session, job, max_queue_age_s)
        active, epoch, job_id = job.state in ACTIVE, job.epoch, job.id
        _fail(session, job_id, Actor.RECONCILER, error)
        if active:
            attempts.close(session, job_id, epoch, State.FAILED, error=error)
    return [job.id for job, _ in expired]


def to_ring(session: Session, older_than_s: float = 30, *, limit: int = 100) -> list[Bell]:
    """Queued jobs whose doorbell was never rung, or long ago."""
    silent = sa.or_(Job.rung_at.is_(None), Job.rung_at < now() - older_than_s)
    statement = sa.select(Job.id, Job.gpus, Job.gpu_type).where(*queue.ready(), silent)
    order = (Job.priority.desc(), Job.queued_at, Job.id)
    return [Bell(*row) for row in session.execute(statement.order_by(*order).limit(limit))]


def mark_rung(session: Session, bells: Iterable[Bell], *, rung: bool = True) -> None:
    """Remember that the doorbell of these jobs is rung now, or that it could not be rung.

    To be committed before it is rung: while the row is locked, a worker that hears the bell passes the job over.
    """
    where = (Job.id.in_([bell.job_id for bell in bells]), Job.state == State.QUEUED)
    statement = sa.update(Job).where(*where).values(rung_at=now() if rung else None)
    session.execute(statement.execution_options(synchronize_session=False))


def made_progress(session: Session, job_id: str, checkpoint_id: str, step: int, *, final: bool) -> None:
    """A checkpoint became durable: resume from it, with all attempts. The caller holds the row."""
    values: dict[str, Any] = {"resume_checkpoint_id": checkpoint_id, "attempts_left": Job.max_attempts}
    if final:
        values["final_checkpoint_id"] = checkpoint_id
    statement = sa.update(Job).where(Job.id == job_id).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))
    message = f"Checkpoint created at step {step}"
    told = sa.exists().where(Event.job_id == job_id, Event.message == message)  # a replayed step
    if not session.scalar(sa.select(told)):
        events.append(session, job_id, None, "info", message, data={"step": step})


def _write(session: Session, job_id: str, epoch: int, column: Any, **values: Any) -> Any:
    guard = (Job.id == job_id, Job.epoch == epoch, Job.state.in_(ACTIVE))
    statement = sa.update(Job).where(*guard).values(**values).execution_options(synchronize_session=False)
    return session.scalar(statement.returning(column))


def _release(
    session: Session,
    job_id: str,
    current: State,
    actor: Actor,
    error: JobError,
    spend_attempt: bool,
    not_before_s: float,
) -> State:
    """End a run that did not end by itself, because of `error`. The caller holds the row."""
    if current == State.CANCELLING:
        _end(session, job_id, State.CANCELLED, actor)
        return State.CANCELLED
    if not may_retry(error.code):
        return _fail(session, job_id, actor, error)
    if error.code == "oom" and error.step in attempts.oom_steps(session, job_id):
        return _fail(session, job_id, actor, error, "for the second time, with no checkpoint in between")
    if current == State.PAUSING:
        return _pause(session, job_id, current, None, actor)
    columns = (Job.attempts_left, Job.resume_checkpoint_id, Job.last_step, Job.max_runtime_s, attempts.runtime_s())
    left, checkpoint_id, last_step, max_runtime_s, runtime_s = session.execute(
        sa.select(*columns).where(Job.id == job_id)
    ).one()
    left -= int(spend_attempt)
    if max_runtime_s is not None and runtime_s >= max_runtime_s:
        return _fail(session, job_id, actor, _deadline(max_runtime_s, last_step), f"its last attempt: {error.message}")
    if left <= 0:
        return _fail(session, job_id, actor, error, "no attempt is left", attempts_left=0)
    move(session, job_id, State.QUEUED, actor, attempts_left=left, not_before=now() + not_before_s, rung_at=None)
    goes_on = "It will continue from the last checkpoint" if checkpoint_id else "It will start again"
    message = f"Training was interrupted: {error.message.rstrip('.')}. {goes_on}"
    level: events.Level = "warn" if spend_attempt else "info"
    events.append(session, job_id, None, level, message, data=_details(error))
    return State.QUEUED


def _end(session: Session, job_id: str, target: State, actor: Actor, **values: Any) -> State:
    if target == State.SUCCEEDED:
        job = session.get_one(Job, job_id, populate_existing=True)
        if job.kind == Kind.TRAIN:
            values["result_files"] = files.insert_results(session, job)
    if not move(session, job_id, target, actor, **values):
        raise RuntimeError(f"job {job_id} changed state while its row was locked")
    if target == State.SUCCEEDED:
        job = session.get_one(Job, job_id, populate_existing=True)
        if job.final_checkpoint_id is None:
            raise ValueError(f"job {job_id} cannot succeed without a final checkpoint")
        if job.kind == Kind.TRAIN:
            events.append(session, job_id, None, "info", f"New fine-tuned model created: {job.tuned_model}")
        events.append(session, job_id, None, "info", "The job has successfully completed")
    return target


def _fail(
    session: Session, job_id: str, actor: Actor, error: JobError, remark: str | None = None, **values: Any
) -> State:
    message = clean(explain(error, remark), MAX_TEXT)
    values |= {
        "error_code": error.code,
        "error_message": message,
        "error_param": error.param,
        "error_phase": error.phase,
        "error_step": error.step,
        "error_log": clean(error.detail) if error.detail else None,
    }
    _end(session, job_id, State.FAILED, actor, **values)
    events.append(session, job_id, None, "error", f"The job failed: {message}", data=_details(error))
    return State.FAILED


def _pause(session: Session, job_id: str, current: State, error: JobError | None, actor: Actor = Actor.WORKER) -> State:
    """Pause by the user's wish, or, from running, by the service's because of `error`."""
    if error is None:
        _end(session, job_id, State.PAUSED, actor)
        events.append(session, job_id, None, "info", "Fine-tuning job paused")
        return State.PAUSED
    message, values = clean(explain(error), MAX_TEXT), {}
    if current == State.RUNNING:
        values = {"desired": "pause", "pause_code": error.code, "pause_message": message}
    _end(session, job_id, State.PAUSED, actor, **values)
    events.append(session, job_id, None, "warn", f"Fine-tuning job paused: {message}", data=_details(error))
    return State.PAUSED


def _stop(session: Session, job_id: str, error: JobError) -> State:
    """End a job with the last checkpoint it made as its result; it has failed when it made none."""
    own = sa.select(Checkpoint).where(Checkpoint.job_id == job_id, ~Checkpoint.damaged)
    last = session.scalar(own.order_by(Checkpoint.step.desc()).limit(1))
    if last is None:
        return _fail(session, job_id, Actor.WORKER, error, "there is no checkpoint yet")
    last.final = True
    session.flush()
    message = f"Stopped at step {last.step}: {error.message}"
    events.append(session, job_id, None, "warn", message, data=_details(error))
    return _end(session, job_id, State.SUCCEEDED, Actor.WORKER, final_checkpoint_id=last.id)


def _known(error: JobError | None) -> JobError | None:
    return None if error is None else replace(error, code=canonical(error.code))


def _details(error: JobError) -> dict[str, Any]:
    details = {
        "code": error.code,
        "phase": error.phase,
        "step": error.step,
        "log_tail": clean(error.detail) if error.detail else None,
    }
    return {name: value for name, value in details.items() if value is not None}


def _deadline(max_runtime_s: float | None, step: int) -> JobError:
    return JobError("deadline", f"the job ran for all of its {max_runtime_s or 0:g} seconds", step=step)


def _waited(session: Session, job: Job, max_queue_age_s: float | None) -> JobError:
    reason = queue.wait_reason(session, job)
    message = f"the job waited for more than {max_queue_age_s or 0:g} seconds"
    return JobError("queue_timeout", f"{message}: {reason[0].lower()}{reason[1:]}" if reason else message)
