"""Cloning a job: its create request with changes, made anew like any other request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.repositories import job_rows
from jobs.services.create import make
from jobs.services.once import Ticket
from jobs.services.submit import repeated, submission
from jobs.tables import Job
from jobs.wire.base import explain
from jobs.wire.request import CreateJob

_MAX_DEPTH = 64


def clone(
    ctx: Context,
    project_id: str,
    job_id: str,
    changes: Mapping[str, Any],
    idempotency_key: str | None = None,
    ticket: Ticket | None = None,
) -> Job:
    """Queue a new job from the request of another one, whatever became of that.

    Args:
        changes: a JSON merge patch (RFC 7396) of the create body: objects merge, null removes a key, all else replaces.

    Raises:
        NotFound: no such job, or no such base model.
        InvalidRequest: the changed request is wrong, or the job is from before requests were kept.
        InsufficientQuota, Conflict: as for `create`.
    """
    _require_shallow(changes)
    wanted = submission(project_id, idempotency_key, {"clone": job_id, "changes": changes}, ticket)
    if (made := repeated(ctx, wanted)) is not None:
        return made
    with ctx.db.read() as session:
        source = job_rows.get(session, project_id, job_id)
    if source is None:
        raise NotFound(f"No such fine-tuning job: {job_id}", "id")
    if source.request is None:
        raise InvalidRequest(f"Job {job_id} was made before requests were kept: create a new job instead.", "id")
    body = merge({"seed": source.seed} | source.request, changes)
    try:
        return make(ctx, wanted, CreateJob.model_validate(body), source)
    except ValidationError as error:
        raise InvalidRequest(*explain(error.errors(include_url=False)[0], body)) from error


def _require_shallow(changes: Mapping[str, Any]) -> None:
    level: list[Any] = [changes]
    for _ in range(_MAX_DEPTH):
        inner = [item.values() if isinstance(item, Mapping) else item for item in level]
        level = [value for values in inner for value in values if isinstance(value, Mapping | list)]
    if level:
        raise InvalidRequest(f"The body is nested more than {_MAX_DEPTH} levels deep.")


def merge(target: Any, patch: Any) -> Any:
    """`target` changed by a JSON merge patch; neither is altered."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged
