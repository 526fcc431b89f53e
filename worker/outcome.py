"""What the end of a trainer means for its job: one pure function from what was seen to what is written."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from bgpo.records import ErrorRecord, ExitCode
from jobs.repositories.jobs import JobError
from jobs.states import State

# Trying again cannot help: the input or the run itself is at fault. Out of memory is not here, since another machine,
# or a resume with other neighbours, may have room; attempts are limited anyway.
_FATAL = {
    ExitCode.BAD_SPEC: ("invalid_spec", "the run specification was refused"),
    ExitCode.BAD_MODEL: ("bad_model", "the model could not be loaded"),
    ExitCode.BAD_DATA: ("invalid_file_format", "the data could not be used"),
    ExitCode.GRADER: ("grader_error", "the grader failed"),
    ExitCode.NON_FINITE: ("nan", "loss or gradient became NaN or infinite"),
    ExitCode.ZERO_GRADIENT: ("zero_gradient", "rewards differ, but the gradient is exactly zero"),
}

# The trainer names fields of its specification; the user knows the request's.
_PARAMS = {"train_data": "training_file", "validation_data": "validation_file"}


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. Without a state the job is handed back, to go on from its last checkpoint."""

    state: State | None
    error: JobError | None = None
    """Why the job failed, or fails if it has no attempt left."""
    spend_attempt: bool = False


@dataclass(frozen=True)
class Ending:
    """What was seen of a trainer that has exited."""

    status: int
    """Exit status; negative = the signal that killed it."""
    desired: str = "run"
    draining: bool = False
    final_published: bool = False
    upload_failure: str | None = None
    error: ErrorRecord | None = None
    log_tail: str = ""


def judge(seen: Ending) -> Outcome:
    """The outcome of an attempt."""
    if seen.status == ExitCode.FINISHED and seen.final_published:
        return Outcome(State.SUCCEEDED)
    if seen.status in _FATAL:
        return Outcome(State.FAILED, _error(seen, *_FATAL[ExitCode(seen.status)]))
    if seen.desired in ("cancel", "pause"):
        return Outcome(State.CANCELLED if seen.desired == "cancel" else State.PAUSED)
    if seen.draining and (seen.status < 0 or seen.status == ExitCode.STOPPED):
        return Outcome(None, JobError("worker_lost", "the worker was stopped"))
    if seen.status == ExitCode.FINISHED:
        why = seen.upload_failure or "the trainer ended without a final checkpoint"
        return Outcome(None, JobError("server_error", why, detail=seen.log_tail), spend_attempt=True)
    return Outcome(None, _error(seen, "trainer_crashed", _describe(seen.status)), spend_attempt=True)


def _error(seen: Ending, code: str, message: str) -> JobError:
    """The trainer's own words if it had any, with where it was; the end of its log beside."""
    if seen.error is None:
        return JobError(code, message, detail=seen.log_tail)
    where = f" (step {seen.error.step}, {seen.error.phase})"
    param = seen.error.param
    return JobError(seen.error.code, seen.error.message + where, _PARAMS.get(param or "", param), seen.log_tail)


def _describe(status: int) -> str:
    if status >= 0:
        return f"the trainer ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    return f"the trainer was killed by {name}"
