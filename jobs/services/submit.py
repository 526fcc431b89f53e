"""Putting a new job in the queue, whichever request made it: create, retry or clone.

The job, its first events and its place in the queue are one transaction; the doorbell follows the commit. Repeating a
request with the same idempotency key gives the job the first one made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.errors import Conflict, InvalidRequest
from jobs.repositories import job_rows
from jobs.services.quotas import require_job
from jobs.services.ringing import note, ring
from jobs.tables import Job

MAX_KEY = 255


@dataclass(frozen=True)
class Submission:
    """A request for a new job: whose it is, and what tells it from another one."""

    project_id: str
    key: str | None
    """Idempotency key; None = every request is a new one."""
    digest: str
    """Of all that the request says."""


def submission(project_id: str, key: str | None, request: Mapping[str, Any]) -> Submission:
    """Raises InvalidRequest for a key that cannot be one."""
    if key is not None and not (key.isprintable() and 0 < len(key) <= MAX_KEY):
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_KEY} printable characters.")
    canonical = json.dumps(request, sort_keys=True)
    return Submission(project_id, key, hashlib.sha256(canonical.encode()).hexdigest())


def repeated(ctx: Context, wanted: Submission) -> Job | None:
    """The job that this very request has made before. Raises Conflict when another request used its key."""
    if wanted.key is None:
        return None
    with ctx.db.read() as session:
        job = job_rows.by_idempotency_key(session, wanted.project_id, wanted.key)
    if job is not None and job.request_hash != wanted.digest:
        raise Conflict("This Idempotency-Key was used with another request.", None, "idempotency_key_reused")
    return job


def submit(ctx: Context, wanted: Submission, enter: Callable[[Session], Job]) -> Job:
    """Queue the job that `enter` inserts, and ring for it.

    Raises:
        InsufficientQuota: as many jobs of the project wait as may, or its budget is used up.
        Conflict: another request has used the key meanwhile.
    """
    try:
        with ctx.db.transaction() as session:
            require_job(ctx, session, wanted.project_id)
            job = enter(session)
            note(session, job)
    except IntegrityError:  # the twin of this request was quicker
        twin = repeated(ctx, wanted)
        if twin is None:
            raise
        return twin
    ring(ctx, job)
    return job
