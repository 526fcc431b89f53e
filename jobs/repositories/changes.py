"""What users change about a job that is otherwise fixed, and the deletion of one. Each change counts up `revision`.

A deleted job is a row that nobody sees: what it used stays known, as if it were still there, so that deleting jobs
gives no budget back. All it has told, asked for and made goes.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.tables import Attempt, Delivery, Event, Job, LogLine, Metric, Sample

_QUIET = {"synchronize_session": False}


def change(session: Session, job_id: str, **values: Any) -> None:
    """Set columns of a job that is locked."""
    statement = sa.update(Job).where(Job.id == job_id).values(**values, revision=Job.revision + 1)
    session.execute(statement.execution_options(**_QUIET))


def erase(session: Session, job_id: str) -> None:
    """Empty a job that is over and locked, and hide it; its checkpoints are gone already.

    A webhook that is still to be delivered is: the job has ended, whether or not it is remembered.
    """
    for table in (Event, Metric, Sample, LogLine):
        session.execute(sa.delete(table).where(table.job_id == job_id).execution_options(**_QUIET))
    sent = (Delivery.job_id == job_id, Delivery.state != "pending")
    session.execute(sa.delete(Delivery).where(*sent).execution_options(**_QUIET))
    silent = sa.update(Attempt).where(Attempt.job_id == job_id).values(error_message=None)
    session.execute(silent.execution_options(**_QUIET))
    nothing = dict.fromkeys(("idempotency_key", "tags", "suffix", "request", "error_message", "error_log"))
    nothing |= dict.fromkeys(("resume_checkpoint_id", "final_checkpoint_id", "start_checkpoint_id"))
    nothing |= dict.fromkeys(("lineage", "webhook_url", "pause_message", "result_files"))
    change(session, job_id, **nothing, recipe={}, method={}, tuned_model=job_id, deleted_at=now())
