"""Attempts of a job on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.states import State, WireStatus, wire_status
from jobs.tables import Attempt


class AttemptError(BaseModel):
    """Why an attempt ended early."""

    code: str = Field(description="One of docs/failures.md.")
    message: str
    phase: str | None = Field(description="What the run was doing.")
    step: int | None


class AttemptObject(Listed):
    """One time a worker had the job."""

    id: str = Field(description="Within its job: the number.")
    object: Literal["fine_tuning.job.attempt"] = "fine_tuning.job.attempt"
    number: int = Field(description="1 for the first.")
    worker: str
    host: str | None
    devices: list[str] | None = Field(description="Accelerators it held.")
    started_at: int
    ended_at: int | None
    resumed_step: int | None = Field(description="Step of the checkpoint it went on from; null: the base model.")
    outcome: WireStatus | None = Field(description="Status of the job when it ended; null while it runs.")
    exit_code: int | None = Field(description="Of the trainer, unless a signal ended it.")
    signal: int | None
    error: AttemptError | None


def attempt_object(row: Attempt) -> AttemptObject:
    """A row as the wire has it."""
    error = None
    if row.error_code is not None:
        message = row.error_message or ""
        error = AttemptError(code=row.error_code, message=message, phase=row.error_phase, step=row.error_step)
    return AttemptObject(
        id=str(row.epoch),
        number=row.epoch,
        worker=row.worker_id,
        host=row.host,
        devices=row.devices,
        started_at=int(row.started_at),
        ended_at=None if row.ended_at is None else int(row.ended_at),
        resumed_step=row.resumed_step,
        outcome=None if row.outcome is None else wire_status(State(row.outcome)),
        exit_code=row.exit_code,
        signal=row.signal,
        error=error,
    )
