"""Why jobs fail: the stable codes, what a user can change, and whether trying again may help.

The codes are part of the wire contract (`job.error.code`, `rl.failure.code`, attempts); docs/failures.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One kind of failure."""

    advice: str
    """What to change, one sentence."""
    retry: bool
    """Another attempt may succeed."""


FAILURES: dict[str, Failure] = {
    "oom": Failure("Lower batch_size, group_size, mc_samples or max_completion_length, or ask for more GPUs.", True),
    "nan": Failure("Lower the learning rate or the KL-free steps, and retry from the last checkpoint.", False),
    "zero_gradient": Failure("Check that the trained parameters reach the loss.", False),
    "grader_error": Failure("Run the grader on the rows named in the events, correct it, and clone the job.", False),
    "dataset_error": Failure("Correct the file, upload it again, and clone the job with it.", False),
    "bad_model": Failure("Choose a base model of GET /v1/models, or a checkpoint that fits the job.", False),
    "invalid_spec": Failure("Clone the job with the parameter corrected.", False),
    "worker_lost": Failure("Nothing in the job: its worker or machine went away.", True),
    "trainer_crashed": Failure("Read the end of the log; if it repeats at one step, change what that step does.", True),
    "stalled": Failure("Nothing was reported for too long: check the grader's endpoints and the GPU.", True),
    "deadline": Failure("Raise rl.resources.max_runtime_s and retry the job.", False),
    "queue_timeout": Failure("Ask for fewer GPUs or another gpu_type, or start a worker that has them.", False),
    "disk_full": Failure("Free space on the worker's disk or the artifact store, then resume the job.", True),
    "storage_unavailable": Failure("The artifact store did not answer: check it, then retry the job.", True),
    "server_error": Failure("Quote the job's id to the operator.", True),
}


def advise(code: str, message: str) -> str:
    """`message` with what to change behind it."""
    known = FAILURES.get(code)
    return f"{message.rstrip('.')}. {known.advice}" if known is not None else message
