"""Failure records: what a failed attempt and a failed job keep, and which failures end a job at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs.artifacts import Manifest
from jobs.db import Database
from jobs.failures import FAILURES, JobError, canonical, explain, may_retry
from jobs.repositories import attempts, checkpoints, events, job_rows, jobs
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Event, Job

Make = Callable[..., str]
MakeRunning = Callable[..., jobs.Claim]
Get = Callable[[str], Job]
OOM = JobError("oom", "CUDA out of memory", detail="Traceback", phase="training", step=12)
CRASH = JobError("trainer_crashed", "the trainer was killed by SIGSEGV", detail="core dumped", phase="rollout", step=4)


@pytest.fixture
def attempt(db: Database, manifest: Manifest) -> Callable[..., jobs.Claim]:
    """One more attempt of a job: claim, perhaps a checkpoint, and the error it is handed back for."""

    def run(job_id: str, error: JobError, *, checkpoint: int | None = None, spend: bool = True) -> jobs.Claim:
        with db.transaction() as session:
            claim = jobs.claim(session, job_id, "w", 60)
            assert claim is not None
            if checkpoint is not None:
                assert checkpoints.insert(session, job_id, claim.epoch, checkpoint, "k", manifest, False, {})
            assert jobs.hand_back(session, job_id, claim.epoch, error=error, spend_attempt=spend, signal=11)
        return claim

    return run


def last_event(db: Database, job_id: str) -> Event:
    with db.read() as session:
        return events.page(session, job_id, before_seq=None, limit=1)[0]


def test_every_kind_says_what_happened_and_what_to_change() -> None:
    for code, kind in FAILURES.items():
        assert canonical(code) == code
        for text in (kind.meaning, kind.advice):
            assert text[0].isupper()
            assert text.endswith(".")


def test_codes_of_other_places_are_translated() -> None:
    assert canonical("invalid_file_format") == "dataset_error"
    assert canonical("invalid_value") == "invalid_spec"
    assert canonical("something new") == "server_error"
    assert not may_retry("invalid_file_format")


@pytest.mark.parametrize(
    ("error", "remark", "said"),
    [
        (JobError("worker_lost", "the worker was lost"), None, "the worker was lost."),
        (JobError("worker_lost", "It went.", step=3), "no attempt is left", "It went (step 3); no attempt is left."),
        (OOM, None, "CUDA out of memory (step 12, training)."),
        (replace(OOM, message="No memory (step 12, training)"), None, "No memory (step 12, training)."),
        (JobError("oom", "No memory", phase="loading_model"), None, "No memory (loading_model)."),
    ],
)  # fmt: skip
def test_messages(error: JobError, remark: str | None, said: str) -> None:
    assert explain(error, remark) == f"{said} {FAILURES[error.code].advice}"


def test_a_failed_attempt_is_remembered_when_the_job_goes_on(
    db: Database, make_job: Make, get_job: Get, attempt: Callable[..., jobs.Claim]
) -> None:
    job_id = make_job()
    attempt(job_id, CRASH)
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_message) == ("queued", None, None)
    with db.read() as session:
        [row] = attempts.of_job(session, job_id)
    assert (row.outcome, row.error_code, row.error_message) == ("queued", CRASH.code, CRASH.message)
    assert (row.error_phase, row.error_step, row.signal, row.exit_code) == ("rollout", 4, 11, None)
    event = last_event(db, job_id)
    assert event.level == "warn"
    assert event.message == "Training was interrupted: the trainer was killed by SIGSEGV. It will start again"
    assert event.data == {"code": CRASH.code, "phase": "rollout", "step": 4, "log_tail": "core dumped"}
    attempt(job_id, CRASH, checkpoint=3)
    assert last_event(db, job_id).message.endswith("It will continue from the last checkpoint")


def test_the_last_attempt_fails_the_job_with_all_there_is_to_know(
    db: Database, make_job: Make, get_job: Get, attempt: Callable[..., jobs.Claim]
) -> None:
    job_id = make_job(attempts_left=1)
    attempt(job_id, CRASH)
    job = get_job(job_id)
    message = "the trainer was killed by SIGSEGV (step 4, rollout); no attempt is left. "
    assert job.error_message == message + FAILURES["trainer_crashed"].advice
    assert (job.error_code, job.error_phase, job.error_step, job.error_log) == (CRASH.code, "rollout", 4, "core dumped")
    event = last_event(db, job_id)
    assert (event.level, event.message) == ("error", f"The job failed: {job.error_message}")
    assert event.data == {"code": CRASH.code, "phase": "rollout", "step": 4, "log_tail": "core dumped"}


@pytest.mark.parametrize("code", sorted(code for code, kind in FAILURES.items() if not kind.retry))
@pytest.mark.parametrize("pausing", [False, True])
def test_what_cannot_succeed_is_not_tried_again(
    db: Database, make_running: MakeRunning, get_job: Get, code: str, pausing: bool
) -> None:
    claim = make_running()
    with db.transaction() as session:
        if pausing:
            job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
        assert jobs.hand_back(session, claim.job_id, 1, error=JobError(code, "so it is"), spend_attempt=False)
    job = get_job(claim.job_id)
    assert (job.state, job.error_code, job.attempts_left) == ("failed", code, 3)


class TestOutOfMemory:
    def test_twice_at_one_step_ends_the_job(
        self, make_job: Make, get_job: Get, attempt: Callable[..., jobs.Claim]
    ) -> None:
        job_id = make_job(attempts_left=9, max_attempts=9)
        assert attempt(job_id, OOM, checkpoint=10).oom_step is None
        assert attempt(job_id, CRASH).oom_step == 12
        assert attempt(job_id, replace(OOM, step=11)).oom_step == 12
        assert get_job(job_id).state == "queued"
        assert attempt(job_id, OOM).oom_step == 11
        job = get_job(job_id)
        assert (job.state, job.error_code, job.error_step) == ("failed", "oom", 12)
        assert job.error_message is not None
        assert "(step 12, training); for the second time, with no checkpoint in between." in job.error_message

    def test_a_checkpoint_in_between_forgives_it(
        self, make_job: Make, get_job: Get, attempt: Callable[..., jobs.Claim]
    ) -> None:
        job_id = make_job(attempts_left=9, max_attempts=9)
        attempt(job_id, OOM)
        assert attempt(job_id, OOM, checkpoint=11).oom_step == 12
        assert get_job(job_id).state == "queued"
        assert attempt(job_id, CRASH).oom_step == 12  # of the second attempt, whose checkpoint came before it
        attempt(job_id, OOM)
        assert get_job(job_id).state == "failed"

    def test_without_a_step_there_is_nothing_to_compare(
        self, make_job: Make, get_job: Get, attempt: Callable[..., jobs.Claim]
    ) -> None:
        job_id = make_job(attempts_left=9, max_attempts=9)
        for _ in range(3):
            attempt(job_id, replace(OOM, step=None))
        assert get_job(job_id).state == "queued"


class TestPausedByTheService:
    FULL = JobError("disk_full", "the worker's disk is full", phase="checkpointing", step=5)

    def test_says_why_and_spends_nothing(self, db: Database, make_running: MakeRunning, get_job: Get) -> None:
        claim = make_running()
        with db.transaction() as session:
            assert jobs.finish(session, claim.job_id, 1, State.PAUSED, error=self.FULL, exit_code=9)
        job = get_job(claim.job_id)
        assert (job.state, job.desired, job.attempts_left, job.error_code) == ("paused", "pause", 3, None)
        said = f"the worker's disk is full (step 5, checkpointing). {FAILURES['disk_full'].advice}"
        assert (job.pause_code, job.pause_message) == ("disk_full", said)
        event = last_event(db, claim.job_id)
        assert (event.level, event.message) == ("warn", f"Fine-tuning job paused: {said}")
        assert event.data == {"code": "disk_full", "phase": "checkpointing", "step": 5}
        with db.read() as session:
            [row] = attempts.of_job(session, claim.job_id)
        assert (row.outcome, row.error_code, row.exit_code) == ("paused", "disk_full", 9)

    def test_needs_a_reason(self, db: Database, make_running: MakeRunning) -> None:
        claim = make_running()
        with pytest.raises(ValueError, match="needs an error to become paused"), db.transaction() as session:
            jobs.finish(session, claim.job_id, 1, State.PAUSED)

    def test_a_pause_the_user_asked_for_stays_the_users(
        self, db: Database, make_running: MakeRunning, get_job: Get
    ) -> None:
        claim = make_running()
        with db.transaction() as session:
            job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
            assert jobs.finish(session, claim.job_id, 1, State.PAUSED, error=self.FULL)
        job = get_job(claim.job_id)
        assert (job.state, job.pause_code) == ("paused", None)
        assert last_event(db, claim.job_id).level == "warn"


class TestAttempts:
    def test_the_start_is_recorded_by_the_worker_that_holds_the_job(
        self, db: Database, make_running: MakeRunning
    ) -> None:
        claim = make_running()
        how = {"pid": 77, "devices": ["GPU-1"], "resumed_step": 4}
        with db.transaction() as session:
            assert jobs.start_attempt(session, claim.job_id, 1, **how)
            assert not jobs.start_attempt(session, claim.job_id, 2, **how)
            [row] = attempts.of_job(session, claim.job_id)
            assert (row.pid, row.devices, row.resumed_step) == (77, ["GPU-1"], 4)
            job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
            jobs.finish(session, claim.job_id, 1, State.CANCELLED)
            assert not jobs.start_attempt(session, claim.job_id, 1, **how)
