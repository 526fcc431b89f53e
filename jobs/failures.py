"""Why jobs fail: the stable codes, what a user can change, and whether trying again may help.

The codes are part of the wire contract (`job.error.code`, `rl.failure.code`, attempts); docs/failures.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One kind of failure."""

    meaning: str
    """What happened, one sentence."""
    advice: str
    """What to change, one sentence."""
    retry: bool
    """Another attempt may succeed."""


FAILURES: dict[str, Failure] = {
    "oom": Failure(
        "The accelerator ran out of memory, also with the smallest micro-batch.",
        "Lower batch_size, group_size, mc_samples or max_completion_length, or ask for more accelerators.",
        True,
    ),
    "nan": Failure(
        "Loss or gradient became NaN or infinite too often.",
        "Clone the job with a lower learning rate.",
        False,
    ),
    "zero_gradient": Failure(
        "Rewards differ and yet the gradient is exactly zero: nothing would be learned.",
        "Check that the parameters to train take part in the loss (LoRA targets, frozen layers).",
        False,
    ),
    "grader_error": Failure(
        "The grader failed on too many samples, or lacks what it needs, such as a secret.",
        "Run the grader on the rows named in the events, correct it or what it needs, and clone the job with it.",
        False,
    ),
    "dataset_error": Failure(
        "The training or validation file cannot be used.",
        "Correct the file, upload it again, and clone the job with it.",
        False,
    ),
    "bad_model": Failure(
        "The base model or the checkpoint cannot be loaded, or does not fit the job.",
        "Clone the job with another base model of GET /v1/models.",
        False,
    ),
    "invalid_spec": Failure(
        "The trainer refused the job's parameters.",
        "Clone the job with the named parameter corrected.",
        False,
    ),
    "worker_lost": Failure(
        "The worker or its machine went away.",
        "Nothing is wrong with the job: retry it, and have the operator look at the workers.",
        True,
    ),
    "trainer_crashed": Failure(
        "The training process ended without saying why, for example killed by the system for its memory.",
        "Read the end of the log; if it happens at the same step each time, change what that step does.",
        True,
    ),
    "stalled": Failure(
        "The training process reported nothing for too long and was ended.",
        "Look for a grader that does not answer, and at the accelerator.",
        True,
    ),
    "deadline": Failure(
        "The job's attempts together took longer than rl.resources.max_runtime_s.",
        "Retry the job from its last checkpoint with a higher rl.resources.max_runtime_s.",
        False,
    ),
    "queue_timeout": Failure(
        "The job waited in the queue for longer than the service allows.",
        "Ask for fewer accelerators or another gpu_type, or have the operator start a worker that fits.",
        False,
    ),
    "disk_full": Failure(
        "The worker's disk or the artifact store is full.",
        "Free space there, then resume the job if it is paused, or retry it.",
        True,
    ),
    "budget_exceeded": Failure(
        "The job has used up its rl.budget, or the project its accelerator time or judge tokens of this month.",
        "Raise rl.budget with PATCH, or ask for a higher limit or wait for the next month; then resume the job.",
        True,
    ),
    "storage_unavailable": Failure(
        "The artifact store did not answer or refused a file.",
        "Have the operator check the artifact store, then retry the job.",
        True,
    ),
    "server_error": Failure(
        "The service itself failed.",
        "Give the job's id to the operator, and retry the job.",
        True,
    ),
}

# What errors of input are called where there is no job yet.
_ALIASES = {"invalid_file_format": "dataset_error", "invalid_value": "invalid_spec"}


@dataclass(frozen=True)
class JobError:
    """Why an attempt or a job failed, for its user."""

    code: str
    """One of `FAILURES`, see `canonical`."""
    message: str
    """What happened, without advice."""
    param: str | None = None
    detail: str | None = None
    """The end of the trainer's log, and a traceback of the user's own code."""
    phase: str | None = None
    step: int | None = None


def canonical(code: str) -> str:
    """The code of `FAILURES` that `code` stands for; an unknown one is the service's own failure."""
    code = _ALIASES.get(code, code)
    return code if code in FAILURES else "server_error"


def may_retry(code: str) -> bool:
    """Whether another attempt may succeed."""
    return FAILURES[canonical(code)].retry


def advise(code: str, message: str) -> str:
    """`message` with what to change behind it."""
    return f"{message.rstrip('.')}. {FAILURES[canonical(code)].advice}"


def explain(error: JobError, remark: str | None = None) -> str:
    """What a failed job says: what happened, where, why that was the end, and what to change."""
    message = error.message.rstrip(".")
    step = None if error.step is None else f"step {error.step}"
    where = ", ".join(part for part in (step, error.phase) if part is not None)
    if where and where not in message:
        message += f" ({where})"
    return advise(error.code, f"{message}; {remark}" if remark else message)
