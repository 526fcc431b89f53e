"""What the end of an attempt means for its job: pure functions from what was seen to what is written."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from bgpo.errors import BgpoError, InvalidInput, PeerLost
from bgpo.records import ErrorRecord, ExitCode
from jobs.failures import JobError, canonical, may_retry
from jobs.states import State
from jobs.storage.base import FULL

_EXITS = {
    ExitCode.BAD_SPEC: ("invalid_spec", "the run specification was refused"),
    ExitCode.BAD_MODEL: ("bad_model", "the model could not be loaded"),
    ExitCode.BAD_DATA: ("dataset_error", "the data could not be used"),
    ExitCode.GRADER: ("grader_error", "the grader failed"),
    ExitCode.NON_FINITE: ("nan", "loss or gradient became NaN or infinite"),
    ExitCode.ZERO_GRADIENT: ("zero_gradient", "rewards differ, but the gradient is exactly zero"),
    ExitCode.OUT_OF_MEMORY: ("oom", "the accelerator ran out of memory"),
    ExitCode.DISK_FULL: ("disk_full", "the worker's disk is full"),
}

# What the trainer calls an exception it did not expect would be the service's own failure if we called it so.
_CODES = {BgpoError.code: "trainer_crashed", PeerLost.code: "trainer_crashed"}

# The trainer names fields of its specification; the user knows the request's.
_PARAMS = {"data": "file", "train_data": "training_file", "validation_data": "validation_file"}

DRAINED = JobError("worker_lost", "the worker was stopped")
"""Why a drained worker hands its job back."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. Without a state the job is handed back, to go on from its last checkpoint."""

    state: State | None
    error: JobError | None = None
    """Why the job failed or was paused, or why the attempt ended early."""
    spend_attempt: bool = False


@dataclass(frozen=True)
class Ending:
    """What was seen of a trainer that has exited."""

    status: int
    """Exit status; negative = the signal that killed it."""
    desired: str = "run"
    draining: bool = False
    ended_for: JobError | None = None
    """Why this worker stopped it, when neither the user nor a drain asked: `stalled`, `deadline` or `disk_full`."""
    killed_by_us: bool = False
    """A signal of this worker may be what it died of."""
    out_of_host_memory: bool = False
    """The kernel killed processes of this machine for memory while it ran."""
    final_published: bool = False
    upload_failure: JobError | None = None
    error: ErrorRecord | None = None
    """The first cause in the trainer's own words."""
    phase: str | None = None
    step: int | None = None
    log_tail: str = ""


def judge(seen: Ending) -> Outcome:
    """The outcome of an attempt whose trainer ran."""
    if seen.status == ExitCode.FINISHED and seen.final_published:
        return Outcome(State.SUCCEEDED)
    error = _cause(seen)
    deadline = error.code == "deadline"
    if not may_retry(error.code) and not deadline:
        return Outcome(State.FAILED, error)
    if seen.desired in ("cancel", "pause"):
        return Outcome(State.CANCELLED if seen.desired == "cancel" else State.PAUSED)
    if deadline:
        return Outcome(State.FAILED, error)
    if error.code == "disk_full":
        return Outcome(State.PAUSED, error)
    if seen.draining and seen.ended_for is None and (seen.status < 0 or seen.status == ExitCode.STOPPED):
        return Outcome(None, DRAINED)
    return Outcome(None, error, spend_attempt=True)


def of_exception(error: Exception) -> Outcome:
    """The outcome of an attempt that broke outside the trainer."""
    if isinstance(error, BgpoError):
        failure = JobError(canonical(error.code), error.message, error.param)
        if failure.code == "disk_full":
            return Outcome(State.PAUSED, failure)
        if isinstance(error, InvalidInput) or not may_retry(failure.code):
            return Outcome(State.FAILED, failure)
        return Outcome(None, failure, spend_attempt=True)
    if isinstance(error, OSError) and error.errno in FULL:
        return Outcome(State.PAUSED, JobError("disk_full", f"the worker cannot write: {error}"))
    return Outcome(None, JobError("server_error", f"the worker failed: {error}"), spend_attempt=True)


def _cause(seen: Ending) -> JobError:
    """Why an attempt did not finish, first causes first."""
    if seen.ended_for is not None:
        return _placed(seen.ended_for, seen)
    if seen.error is not None and seen.error.code != PeerLost.code:
        return _in_its_own_words(seen.error, seen)
    if seen.status in _EXITS:
        return _placed(JobError(*_EXITS[ExitCode(seen.status)]), seen)
    if seen.upload_failure is not None and seen.status in (ExitCode.FINISHED, ExitCode.STOPPED):
        return _placed(seen.upload_failure, seen)
    if seen.out_of_host_memory and not seen.killed_by_us and seen.status != ExitCode.FINISHED:
        message = f"{_describe(seen)}, and the kernel killed processes for memory: the machine ran out of it"
        return _placed(JobError("oom", message), seen)
    if seen.error is not None:
        return _in_its_own_words(seen.error, seen)
    return _placed(JobError("trainer_crashed", _describe(seen)), seen)


def _placed(error: JobError, seen: Ending) -> JobError:
    step = seen.step if error.step is None else error.step
    return replace(error, detail=error.detail or seen.log_tail, phase=error.phase or seen.phase, step=step)


def _in_its_own_words(record: ErrorRecord, seen: Ending) -> JobError:
    code = canonical(_CODES.get(record.code, record.code))
    param = _PARAMS.get(record.param or "", record.param)
    detail = "\n".join(text for text in (seen.log_tail, record.details) if text)
    return JobError(code, record.message, param, detail, record.phase, record.step)


def _describe(seen: Ending) -> str:
    status = seen.status
    if status == ExitCode.FINISHED:
        return "the trainer ended without a final checkpoint"
    if status >= 0:
        return f"the trainer ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {-status}"
    by_whom = ""
    if -status == signal.SIGKILL and not seen.killed_by_us:
        by_whom = " from outside: by the kernel, most likely for memory, or by a person"
    return f"the trainer was killed by {name}{by_whom}"
