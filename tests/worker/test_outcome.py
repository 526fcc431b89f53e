"""What the end of a trainer means for its job."""

from __future__ import annotations

import pytest

from bgpo.records import ErrorRecord, ExitCode
from jobs.states import State
from worker.outcome import Ending, judge


@pytest.mark.parametrize(
    ("seen", "state", "spend"),
    [
        (Ending(0, final_published=True), State.SUCCEEDED, False),
        (Ending(0, final_published=True, desired="cancel"), State.SUCCEEDED, False),  # the row's state decides
        (Ending(0, final_published=True, draining=True), State.SUCCEEDED, False),
        (Ending(0), None, True),
        (Ending(0, desired="cancel"), State.CANCELLED, False),
        (Ending(ExitCode.BAD_SPEC), State.FAILED, False),
        (Ending(ExitCode.BAD_MODEL), State.FAILED, False),
        (Ending(ExitCode.BAD_DATA, draining=True), State.FAILED, False),
        (Ending(ExitCode.GRADER), State.FAILED, False),
        (Ending(ExitCode.NON_FINITE), State.FAILED, False),
        (Ending(ExitCode.ZERO_GRADIENT), State.FAILED, False),
        (Ending(ExitCode.OUT_OF_MEMORY), None, True),
        (Ending(ExitCode.UNEXPECTED), None, True),
        (Ending(ExitCode.UNEXPECTED, draining=True), None, True),
        (Ending(ExitCode.STOPPED), None, True),  # nobody of ours asked
        (Ending(ExitCode.STOPPED, draining=True), None, False),
        (Ending(ExitCode.STOPPED, desired="pause"), State.PAUSED, False),
        (Ending(ExitCode.CANCELLED), None, True),
        (Ending(ExitCode.CANCELLED, desired="cancel"), State.CANCELLED, False),
        (Ending(-9), None, True),
        (Ending(-9, draining=True), None, False),  # the stop ladder, or close enough
        (Ending(-9, desired="cancel"), State.CANCELLED, False),
        (Ending(-9, desired="pause", draining=True), State.PAUSED, False),
    ],
)
def test_judgement(seen: Ending, state: State | None, spend: bool) -> None:
    outcome = judge(seen)
    assert (outcome.state, outcome.spend_attempt) == (state, spend)
    assert (outcome.error is not None) == (state in (None, State.FAILED))


def test_the_trainers_own_error_is_kept_with_where_it_happened() -> None:
    record = ErrorRecord(
        type="error", seq=1, time=0, code="oom", phase="training", step=7, message="does not fit", param="micro_batch"
    )
    error = judge(Ending(ExitCode.OUT_OF_MEMORY, error=record, log_tail="the end")).error
    assert error is not None
    assert (error.code, error.message, error.param, error.detail) == (
        "oom",
        "does not fit (step 7, training)",
        "micro_batch",
        "the end",
    )


@pytest.mark.parametrize(
    ("status", "words"), [(-9, "killed by SIGKILL"), (-40, "signal 40"), (70, "ended with status 70")]
)
def test_a_death_without_words_is_described(status: int, words: str) -> None:
    error = judge(Ending(status)).error
    assert error is not None
    assert words in error.message


def test_files_are_named_as_in_the_request() -> None:
    record = ErrorRecord(
        type="error", seq=1, time=0, code="c", phase="loading_model", step=0, message="m", param="train_data"
    )
    error = judge(Ending(ExitCode.BAD_DATA, error=record)).error
    assert error is not None
    assert error.param == "training_file"
