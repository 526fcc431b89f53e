"""Putting a new job in the queue, whichever request made it: create, retry or clone.

The job, its first events and its place in the queue are one transaction; the doorbell follows the commit. Repeating a
request with the same idempotency key gives the job the first one made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.repositories import job_rows
from jobs.services import once
from jobs.services.once import Ticket
from jobs.services.quotas import require_job
from jobs.services.ringing import note, ring
from jobs.tables import Job


@dataclass(frozen=True)
class Submission:
    """A request for a new job: whose it is, and what tells it from another one."""

    project_id: str
    key: str | None
    """Idempotency key; None = every request is a new one."""
    digest: str
    """Of all that the request says."""
    ticket: Ticket | None
    """To be given back with the job, when the request has no key but may be one its client repeats."""


def submission(
    project_id: str, key: str | None, request: Mapping[str, Any], ticket: Ticket | None = None
) -> Submission:
    """Raises InvalidRequest for a key that cannot be one."""
    once.check_key(key)
    return Submission(project_id, key, once.digest_of(request), ticket)


def repeated(ctx: Context, wanted: Submission) -> Job | None:
    """The job that this very request has made before. Raises Conflict when another request used its key."""
    if wanted.key is None:
        return None
    with ctx.db.read() as session:
        job = job_rows.by_idempotency_key(session, wanted.project_id, wanted.key)
    if job is not None and job.request_hash != wanted.digest:
        raise once.reused()
    return job


def submit(ctx: Context, wanted: Submission, enter: Callable[[Session], Job]) -> Job:
    """Queue the job that `enter` inserts, and ring for it.

    Raises:
        InsufficientQuota: as many jobs of the project wait as may, or its budget is used up.
        Conflict: another request has used the key meanwhile, or a retry has taken the ticket's work over.
    """
    try:
        with ctx.db.transaction() as session:
            require_job(ctx, session, wanted.project_id)
            job = enter(session)
            note(session, job)
            once.finish(session, wanted.ticket, job.id)
    except IntegrityError:  # the twin of this request was quicker
        twin = repeated(ctx, wanted)
        if twin is None:
            raise
        return twin
    ring(ctx, job)
    return job
