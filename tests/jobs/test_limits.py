"""Deadlines and queue ages: what counts, and how a job past its limit ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.failures import JobError
from jobs.repositories import attempts, events, job_rows, jobs
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Attempt, Job

Make = Callable[..., str]
MakeRunning = Callable[..., jobs.Claim]
Get = Callable[[str], Job]
Put = Callable[..., None]
LOST = JobError("worker_lost", "the worker was lost")


@pytest.fixture
def ran(db: Database) -> Callable[..., None]:
    """Moves an attempt into the past: it began `began` seconds ago and, if it is over, ended `ended` seconds ago."""

    def put(job_id: str, epoch: int, began: float, ended: float | None = None) -> None:
        times = {"started_at": now() - began} | ({} if ended is None else {"ended_at": now() - ended})
        with db.transaction() as session:
            session.execute(sa.update(Attempt).where(Attempt.job_id == job_id, Attempt.epoch == epoch).values(**times))

    return put


@pytest.fixture
def expire(db: Database) -> Callable[..., list[str]]:
    def run(max_queue_age_s: float | None = None, **args: float) -> list[str]:
        with db.transaction() as session:
            return jobs.expire(session, max_queue_age_s, **args)

    return run


class TestQueueAge:
    def test_a_job_that_waits_for_too_long_fails_with_the_reason(
        self, db: Database, make_job: Make, set_job: Put, get_job: Get, expire: Callable[..., list[str]]
    ) -> None:
        old, other = make_job(gpus=4, gpu_type="h200"), make_job()
        set_job(old, queued_at=now() - 100)
        assert expire() == expire(200) == []
        assert expire(50) == [old]
        assert expire(50) == []
        job = get_job(old)
        assert (job.state, job.error_code) == ("failed", "queue_timeout")
        assert job.error_message is not None
        assert job.error_message.startswith(
            "the job waited for more than 50 seconds: no worker is connected. Ask for fewer accelerators"
        )
        assert job.finished_at is not None
        with db.read() as session:
            [event] = events.page(session, old, before_seq=None, limit=1)
        assert (event.level, event.data) == ("error", {"code": "queue_timeout"})
        assert get_job(other).state == "queued"

    def test_an_interrupted_job_has_not_waited_while_it_ran(
        self,
        db: Database,
        make_running: MakeRunning,
        set_job: Put,
        ran: Callable[..., None],
        expire: Callable[..., list[str]],
    ) -> None:
        claim = make_running()
        with db.transaction() as session:
            jobs.hand_back(session, claim.job_id, 1, error=LOST, spend_attempt=True)
        set_job(claim.job_id, queued_at=now() - 1000)
        ran(claim.job_id, 1, 990, 20)
        assert expire(50) == []
        assert expire(10) == [claim.job_id]

    @pytest.mark.parametrize("state", sorted(set(State) - {State.QUEUED, State.VALIDATING}))
    def test_jobs_that_do_not_wait_have_no_age(
        self, make_job: Make, set_job: Put, expire: Callable[..., list[str]], state: State
    ) -> None:
        set_job(make_job(state=state), queued_at=1.0)
        assert expire(10) == []

    def test_a_resumed_job_starts_to_wait_anew(
        self, db: Database, make_job: Make, set_job: Put, expire: Callable[..., list[str]]
    ) -> None:
        job_id = make_job(state="paused")
        set_job(job_id, queued_at=1.0)
        with db.transaction() as session:
            job_rows.resume(session, DEFAULT_PROJECT, job_id)
        assert expire(30) == []


class TestRuntime:
    def test_what_is_left_is_computed_from_the_attempts(
        self, db: Database, make_running: MakeRunning, ran: Callable[..., None]
    ) -> None:
        first = make_running(max_runtime_s=100.0)
        for epoch, (began, ended) in enumerate([(500, 470), (300, 280)], start=1):
            with db.transaction() as session:
                jobs.hand_back(session, first.job_id, epoch, error=LOST, spend_attempt=True)
            ran(first.job_id, epoch, began, ended)
            with db.transaction() as session:
                again = jobs.claim(session, first.job_id, "w", 60)
        assert again is not None
        assert again.runtime_left_s == pytest.approx(50, abs=5)
        assert first.runtime_left_s == 100

    def test_a_lost_attempt_counts_until_its_lease_ended(
        self, db: Database, make_running: MakeRunning, ran: Callable[..., None], set_job: Put
    ) -> None:
        """However late that was noticed: everything may have been switched off for days."""
        claim = make_running(max_runtime_s=100.0)
        ran(claim.job_id, 1, 5000)
        set_job(claim.job_id, lease_until=now() - 4960)
        with db.transaction() as session:
            assert jobs.reap(session, 10) == [claim.job_id]
            [attempt] = attempts.of_job(session, claim.job_id)
            assert attempt.ended_at is not None
            assert attempt.ended_at - attempt.started_at == pytest.approx(40, abs=5)
            assert (attempt.outcome, attempt.error_code) == ("queued", "worker_lost")
            again = jobs.claim(session, claim.job_id, "w", 60)
        assert again is not None
        assert again.runtime_left_s == pytest.approx(60, abs=5)

    def test_a_job_with_nothing_left_does_not_go_back_to_the_queue(
        self, db: Database, make_running: MakeRunning, ran: Callable[..., None], get_job: Get
    ) -> None:
        claim = make_running(max_runtime_s=100.0)
        ran(claim.job_id, 1, 101)
        with db.transaction() as session:
            jobs.hand_back(session, claim.job_id, 1, error=LOST, spend_attempt=False)
        job = get_job(claim.job_id)
        assert (job.state, job.error_code) == ("failed", "deadline")
        assert job.error_message is not None
        assert "ran for all of its 100 seconds" in job.error_message
        assert "its last attempt: the worker was lost" in job.error_message
        with db.read() as session:
            [attempt] = attempts.of_job(session, claim.job_id)
        assert (attempt.outcome, attempt.error_code) == ("failed", "worker_lost")

    def test_a_resumed_job_with_nothing_left_fails(
        self,
        db: Database,
        make_running: MakeRunning,
        ran: Callable[..., None],
        get_job: Get,
        expire: Callable[..., list[str]],
    ) -> None:
        claim = make_running(max_runtime_s=100.0)
        with db.transaction() as session:
            job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
            jobs.finish(session, claim.job_id, 1, State.PAUSED)
        ran(claim.job_id, 1, 300, 200)
        assert expire() == []  # paused for as long as the user likes
        with db.transaction() as session:
            job_rows.resume(session, DEFAULT_PROJECT, claim.job_id)
        assert expire() == [claim.job_id]
        assert get_job(claim.job_id).error_code == "deadline"

    @pytest.mark.parametrize("state", ["running", "pausing"])
    def test_a_worker_that_does_not_end_a_job_at_its_deadline_loses_it(
        self,
        db: Database,
        make_running: MakeRunning,
        ran: Callable[..., None],
        get_job: Get,
        expire: Callable[..., list[str]],
        state: str,
    ) -> None:
        claim, other = make_running(max_runtime_s=100.0), make_running()
        if state == "pausing":
            with db.transaction() as session:
                job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
        for job_id in (claim.job_id, other.job_id):
            ran(job_id, 1, 150)
        assert expire(grace_s=60) == []
        assert expire(grace_s=40) == [claim.job_id]
        job = get_job(claim.job_id)
        assert (job.state, job.error_code, job.lease_until) == ("failed", "deadline", None)
        with db.transaction() as session:
            [attempt] = attempts.of_job(session, claim.job_id)
            assert (attempt.outcome, attempt.error_code) == ("failed", "deadline")
            assert attempt.ended_at is not None
            assert jobs.renew(session, claim.job_id, 1, 60) is None
        assert get_job(other.job_id).state == "running"

    def test_a_job_being_cancelled_is_left_to_its_worker(
        self, db: Database, make_running: MakeRunning, ran: Callable[..., None], expire: Callable[..., list[str]]
    ) -> None:
        claim = make_running(max_runtime_s=1.0)
        ran(claim.job_id, 1, 1000)
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
        assert expire(grace_s=0) == []
