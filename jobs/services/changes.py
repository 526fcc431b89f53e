"""Changing what may be changed about a job, and deleting one that is over."""

from __future__ import annotations

from typing import Any

from jobs.context import Context
from jobs.errors import InvalidRequest, InvalidState, NotFound
from jobs.kinds import NAMES, Kind
from jobs.repositories import changes, checkpoints, events, files, job_rows
from jobs.services import scheduling
from jobs.services.files import forget
from jobs.services.retention import delete_files
from jobs.states import TERMINAL, State, wire_status
from jobs.tables import Job
from jobs.wire.request import PRIORITIES, BudgetBlock, UpdateJob


def update(ctx: Context, project_id: str, job_id: str, body: UpdateJob) -> Job:
    """Change a job.

    Raises:
        NotFound: no such job.
        InvalidState: it is over, and more than its metadata was to change.
        InvalidRequest: it is from before checkpoints were deleted at all.
    """
    with ctx.db.transaction() as session:
        job = job_rows.lock(session, project_id, job_id)
        if job is None:
            raise _missing(job_id)
        values: dict[str, Any] = {}
        told = []
        if "metadata" in body.model_fields_set:
            values["tags"] = body.metadata or None
        if body.rl.priority is not None:
            values["priority"] = PRIORITIES[body.rl.priority]
            told.append(f"priority {body.rl.priority}")
        budget = body.rl.budget.model_dump(exclude_unset=True)
        if budget:
            wish = BudgetBlock.model_validate((job.budget or {}) | budget)
            values["budget"] = scheduling.budget_column(wish)
            told += [f"budget {name} {'unlimited' if value is None else value}" for name, value in budget.items()]
        keep = body.rl.checkpointing.model_dump(exclude_none=True)
        if keep:
            if job.request is None:
                raise InvalidRequest(f"Job {job_id} keeps every checkpoint, as was promised.", "rl.checkpointing")
            values["recipe"] = job.recipe | {"checkpointing": job.recipe.get("checkpointing", {}) | keep}
            told += [f"{name} {str(value).lower()}" for name, value in keep.items()]
        if told and job.state in (*TERMINAL, State.CANCELLING):
            raise InvalidState(f"Job {job_id} is over: only its metadata can be changed.", "rl")
        if values:
            changes.change(session, job_id, **values)
        if told:
            events.append(session, job_id, None, "info", f"Job changed: {', '.join(told)}")
        return job_rows.get(session, project_id, job_id) or job


def delete(ctx: Context, project_id: str, job_id: str, kind: Kind = Kind.TRAIN) -> None:
    """Delete a job that is over with all it has told, its checkpoints, their exports and its result files; their bytes
    go after the rows.

    Raises:
        NotFound: no such job.
        InvalidState: it is not over, or its worker has not stopped yet.
        InvalidRequest: a checkpoint is pinned, or an unfinished job goes on from one.
    """
    with ctx.db.transaction() as session:
        job = job_rows.lock(session, project_id, job_id, kind)
        if job is None:
            raise _missing(job_id, kind)
        state = State(job.state)
        if state == State.CANCELLING:
            raise InvalidState(f"The worker of {job_id} is still stopping: try again in a moment.")
        if state not in TERMINAL:
            raise InvalidState(f"{job_id} is {wire_status(state)}: cancel it before it is deleted.")
        rows = checkpoints.lock_all(session, job_id)
        pinned = next((row for row in rows if row.pinned), None)
        if pinned is not None:
            raise InvalidRequest(f"Its checkpoint {pinned.id} is pinned: unpin it first.", "id", "checkpoint_pinned")
        ids = [row.id for row in rows]
        in_use = checkpoints.resumed_from(session, ids, states=set(State) - TERMINAL)
        in_use |= checkpoints.started_from(session, ids)
        if in_use:
            message = f"An unfinished job goes on or starts from its checkpoint {min(in_use)}: cancel that job first."
            raise InvalidRequest(message, "id", "checkpoint_in_use")
        for export in job_rows.exports_of(session, project_id, job_id):  # over, or one of `ids` were in use
            rows += checkpoints.lock_all(session, export.id)
            changes.erase(session, export.id)
        checkpoints.remove(session, [row.id for row in rows])
        results = files.delete_results(session, job_id)
        changes.erase(session, job_id)
    for row in rows:
        delete_files(ctx.store, row.key)
    forget(ctx.store, results)


def _missing(job_id: str, kind: Kind = Kind.TRAIN) -> NotFound:
    return NotFound(f"No such {NAMES[kind]}: {job_id}", "id")
