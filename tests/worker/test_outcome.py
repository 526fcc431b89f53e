"""What the end of a trainer means for its job."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from bgpo.errors import BgpoError, DataError, DiskFullError, ModelError
from bgpo.records import ErrorRecord, ExitCode
from jobs.artifacts import StorageError, StorageFull
from jobs.failures import JobError
from jobs.states import State
from worker.outcome import Ending, judge, of_exception

FULL = JobError("disk_full", "no room in the store")
OUT = JobError("storage_unavailable", "the store does not answer")
STALLED = JobError("stalled", "nothing for 5 seconds")
LATE = JobError("deadline", "time is over")


def error(code: str, step: int = 7) -> ErrorRecord:
    return ErrorRecord(type="error", seq=1, time=0, code=code, phase="training", step=step, message="words", param=None)


@pytest.mark.parametrize(
    ("seen", "state", "code", "spend"),
    [
        (Ending(0, final_published=True), State.SUCCEEDED, None, False),
        (Ending(0, final_published=True, desired="cancel"), State.SUCCEEDED, None, False),  # the row's state decides
        (Ending(0, final_published=True, draining=True), State.SUCCEEDED, None, False),
        (Ending(0, final_published=True, ended_for=LATE), State.SUCCEEDED, None, False),
        (Ending(0), None, "trainer_crashed", True),
        (Ending(0, desired="cancel"), State.CANCELLED, None, False),
        (Ending(0, upload_failure=OUT), None, "storage_unavailable", True),
        (Ending(0, upload_failure=FULL), State.PAUSED, "disk_full", False),
        (Ending(0, upload_failure=FULL, desired="pause"), State.PAUSED, None, False),
        (Ending(ExitCode.BAD_SPEC), State.FAILED, "invalid_spec", False),
        (Ending(ExitCode.BAD_MODEL), State.FAILED, "bad_model", False),
        (Ending(ExitCode.BAD_DATA, draining=True), State.FAILED, "dataset_error", False),
        (Ending(ExitCode.GRADER, desired="pause"), State.FAILED, "grader_error", False),
        (Ending(ExitCode.NON_FINITE), State.FAILED, "nan", False),
        (Ending(1, error=error("grader_error")), State.FAILED, "grader_error", False),
        (Ending(ExitCode.ZERO_GRADIENT), State.FAILED, "zero_gradient", False),
        (Ending(1, error=error("nan")), State.FAILED, "nan", False),  # a launcher's status says nothing
        (Ending(ExitCode.BAD_DATA, error=error("invalid_file_format")), State.FAILED, "dataset_error", False),
        (Ending(ExitCode.OUT_OF_MEMORY), None, "oom", True),
        (Ending(ExitCode.DISK_FULL), State.PAUSED, "disk_full", False),
        (Ending(ExitCode.DISK_FULL, desired="cancel"), State.CANCELLED, None, False),
        (Ending(ExitCode.DISK_FULL, draining=True), State.PAUSED, "disk_full", False),
        (Ending(ExitCode.UNEXPECTED), None, "trainer_crashed", True),
        (Ending(ExitCode.UNEXPECTED, error=error("server_error")), None, "trainer_crashed", True),
        (Ending(ExitCode.UNEXPECTED, error=error("of-the-future")), None, "server_error", True),
        (Ending(ExitCode.UNEXPECTED, draining=True), None, "trainer_crashed", True),
        (Ending(1, error=error("peer_lost")), None, "trainer_crashed", True),
        (Ending(1, error=error("peer_lost"), out_of_host_memory=True), None, "oom", True),
        (Ending(ExitCode.STOPPED), None, "trainer_crashed", True),  # nobody of ours asked
        (Ending(ExitCode.STOPPED, draining=True), None, "worker_lost", False),
        (Ending(ExitCode.STOPPED, draining=True, upload_failure=OUT), None, "worker_lost", False),
        (Ending(ExitCode.STOPPED, desired="pause"), State.PAUSED, None, False),
        (Ending(ExitCode.STOPPED, ended_for=LATE), State.FAILED, "deadline", False),
        (Ending(ExitCode.STOPPED, ended_for=LATE, desired="pause"), State.PAUSED, None, False),
        (Ending(-9, ended_for=LATE, desired="cancel"), State.CANCELLED, None, False),
        (Ending(ExitCode.CANCELLED), None, "trainer_crashed", True),
        (Ending(ExitCode.CANCELLED, desired="cancel"), State.CANCELLED, None, False),
        (Ending(-9), None, "trainer_crashed", True),
        (Ending(-9, out_of_host_memory=True), None, "oom", True),
        (Ending(-9, out_of_host_memory=True, killed_by_us=True, ended_for=STALLED), None, "stalled", True),
        (Ending(-9, killed_by_us=True, draining=True), None, "worker_lost", False),  # the ladder, or close enough
        (Ending(-9, ended_for=STALLED, draining=True), None, "stalled", True),
        (Ending(-9, ended_for=FULL), State.PAUSED, "disk_full", False),
        (Ending(-9, desired="cancel"), State.CANCELLED, None, False),
        (Ending(-9, desired="pause", draining=True), State.PAUSED, None, False),
    ],
)
def test_judgement(seen: Ending, state: State | None, code: str | None, spend: bool) -> None:
    outcome = judge(seen)
    assert (outcome.state, outcome.error and outcome.error.code, outcome.spend_attempt) == (state, code, spend)


def test_the_trainers_own_error_is_kept_with_where_it_happened() -> None:
    record = error("oom").model_copy(update={"param": "micro_batch"})
    found = judge(Ending(ExitCode.OUT_OF_MEMORY, error=record, log_tail="the end", phase="rollout", step=6)).error
    assert found == JobError("oom", "words", "micro_batch", "the end", "training", 7)


def test_without_words_of_its_own_the_last_known_place_is_told() -> None:
    found = judge(Ending(-11, log_tail="the end", phase="rollout", step=6)).error
    assert found == JobError("trainer_crashed", "the trainer was killed by SIGSEGV", None, "the end", "rollout", 6)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Ending(-9), "killed by SIGKILL from outside: by the kernel, most likely for memory"),
        (Ending(-9, out_of_host_memory=True), "the machine ran out of it"),
        (Ending(-40), "signal 40"),
        (Ending(70), "ended with status 70"),
        (Ending(0), "without a final checkpoint"),
    ],
)
def test_a_death_without_words_is_described(seen: Ending, words: str) -> None:
    found = judge(seen).error
    assert found is not None
    assert words in found.message
    ours = judge(replace(seen, killed_by_us=True)).error
    assert ours is not None
    assert "kernel" not in ours.message


def test_files_are_named_as_in_the_request() -> None:
    record = error("invalid_file_format").model_copy(update={"param": "train_data"})
    found = judge(Ending(ExitCode.BAD_DATA, error=record)).error
    assert found is not None
    assert found.param == "training_file"


@pytest.mark.parametrize(
    ("problem", "state", "code", "spend"),
    [
        (ModelError("no such model", "model"), State.FAILED, "bad_model", False),
        (DataError("gone", "training_file"), State.FAILED, "dataset_error", False),
        (DiskFullError("too small"), State.PAUSED, "disk_full", False),
        (StorageFull("too small"), State.PAUSED, "disk_full", False),
        (OSError(errno.ENOSPC, "No space left on device"), State.PAUSED, "disk_full", False),
        (OSError(errno.EACCES, "Permission denied"), None, "server_error", True),
        (StorageError("no answer"), None, "storage_unavailable", True),
        (BgpoError("?"), None, "server_error", True),
        (ZeroDivisionError("?"), None, "server_error", True),
    ],
)
def test_what_breaks_outside_the_trainer(problem: Exception, state: State | None, code: str, spend: bool) -> None:
    outcome = of_exception(problem)
    assert (outcome.state, outcome.error and outcome.error.code, outcome.spend_attempt) == (state, code, spend)
