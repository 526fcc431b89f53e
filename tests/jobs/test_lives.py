"""Random lives of a few jobs: several workers, stale ones included, reaps, deadlines, users, and what always holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy.orm import Session

from jobs.artifacts import Manifest
from jobs.db import Database, now
from jobs.errors import InvalidState
from jobs.failures import JobError, may_retry
from jobs.ids import JOB, new_id
from jobs.repositories import attempts, checkpoints, events, job_rows, jobs, metrics, webhooks
from jobs.resources import Slot
from jobs.states import ACTIVE, TERMINAL, State, wire_status
from jobs.tables import Attempt, Job

Make = Callable[..., str]
PROJECTS = ("proj_a", "proj_b")
LIMIT = 2
OVER = {"succeeded", "failed", "cancelled"}
WORKERS = st.sampled_from(["w1", "w2"])
JOBS = st.integers(0, 3)
# Most lives should be long: few ends, and few steps, so that steps are replayed.
CODES = st.sampled_from(["worker_lost", "trainer_crashed", "stalled", "oom", "oom", "nan"])
STEPS = st.integers(1, 2)


class Lives(RuleBasedStateMachine):
    """Four jobs of two projects. A worker knows its last claim and goes on with it, whatever became of the job."""

    session: Session
    job_ids: list[str]
    manifest: Manifest

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[str, jobs.Claim] = {}
        self.ended: dict[str, tuple[object, ...]] = {}

    def job(self, job_id: str) -> Job:
        return self.session.get_one(Job, job_id, populate_existing=True)

    def mine(self, worker: str) -> tuple[str, int, bool] | None:
        """Job and epoch of the worker's last claim, and whether the job is still its."""
        claim = self.claims.get(worker)
        if claim is None:
            return None
        job = self.job(claim.job_id)
        return claim.job_id, claim.epoch, job.state in ACTIVE and job.epoch == claim.epoch

    @initialize()
    def begin(self) -> None:
        for worker in ("w1", "w2"):
            self.claim(worker)

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        busy = Counter(job.project_id for job in map(self.job, self.job_ids) if job.state in ACTIVE)
        queued = [job for job in map(self.job, self.job_ids) if job.state == State.QUEUED]
        may = [job.id for job in queued if busy[job.project_id] < LIMIT]
        claim = jobs.claim_next(self.session, Slot(worker), 60, max_running=LIMIT)
        assert (claim is not None) == bool(may)
        if claim is not None:
            assert claim.job_id in may
            assert all(claim.epoch > old.epoch for old in self.claims.values() if old.job_id == claim.job_id)
            self.claims[worker] = claim

    @rule(worker=WORKERS, step=STEPS)
    def record(self, worker: str, step: int) -> None:
        if (mine := self.mine(worker)) is None:
            return
        job_id, epoch, holds = mine
        what = {"step": step, "split": "train", "values": {"loss": float(epoch)}}
        written = metrics.record_step(self.session, job_id, epoch, **what, message=f"Step {step}", data={"step": step})
        assert written == holds

    @rule(worker=WORKERS, step=STEPS, final=st.booleans())
    def checkpoint(self, worker: str, step: int, final: bool) -> None:
        if (mine := self.mine(worker)) is None:
            return
        job_id, epoch, holds = mine
        made = checkpoints.insert(self.session, job_id, epoch, step, f"{epoch}/{step}", self.manifest, final, {})
        assert (made is not None) == (holds and self.job(job_id).state != State.CANCELLING)

    @rule(worker=WORKERS, code=CODES, step=st.none() | STEPS, spend=st.booleans())
    def hand_back(self, worker: str, code: str, step: int | None, spend: bool) -> None:
        if (mine := self.mine(worker)) is None:
            return
        job_id, epoch, holds = mine
        before = self.job(job_id).state
        error = JobError(code, "so it was", step=step)
        assert jobs.hand_back(self.session, job_id, epoch, error=error, spend_attempt=spend) == holds
        if holds and before != State.CANCELLING and not may_retry(code):
            assert self.job(job_id).state == State.FAILED

    @rule(worker=WORKERS, state=st.sampled_from([State.PAUSED, State.SUCCEEDED, State.FAILED, State.CANCELLED]))
    def finish(self, worker: str, state: State) -> None:
        if (mine := self.mine(worker)) is None:
            return
        job_id, epoch, holds = mine
        job = self.job(job_id)
        if holds and job.state != State.CANCELLING and state == State.CANCELLED:
            return  # a worker never cancels by itself
        if holds and state == State.SUCCEEDED and job.state != State.CANCELLING and job.final_checkpoint_id is None:
            return  # refused, see test_job_leases
        error = JobError("disk_full", "the disk is full") if state in (State.FAILED, State.PAUSED) else None
        assert jobs.finish(self.session, job_id, epoch, state, error=error) == holds

    @rule(worker=WORKERS)
    def renew(self, worker: str) -> None:
        if (mine := self.mine(worker)) is not None:
            job_id, epoch, holds = mine
            assert (jobs.renew(self.session, job_id, epoch, 60) is not None) == holds

    @rule(number=JOBS)
    def lease_ends(self, number: int) -> None:
        job_id = self.job_ids[number]
        active = self.job(job_id).state in ACTIVE
        leased = (Job.id == job_id, Job.lease_until.is_not(None))
        self.session.execute(sa.update(Job).where(*leased).values(lease_until=0.0))
        assert jobs.reap(self.session, 10) == ([job_id] if active else [])
        assert self.job(job_id).state not in ACTIVE

    @rule(number=JOBS)
    def time_is_up(self, number: int) -> None:
        """Its attempts, if it has any, took longer than it may run."""
        job_id = self.job_ids[number]
        if self.job(job_id).state in TERMINAL:
            return
        self.session.execute(sa.update(Job).where(Job.id == job_id).values(max_runtime_s=0.0))
        tried, state = self.job(job_id).epoch > 0, self.job(job_id).state
        self.session.execute(sa.update(Attempt).where(Attempt.job_id == job_id).values(started_at=now() - 1000))
        over = (Attempt.job_id == job_id, Attempt.ended_at.is_not(None))  # `waits_too_long` may have put that before
        self.session.execute(sa.update(Attempt).where(*over).values(ended_at=now()))
        ends = state == State.QUEUED or (tried and state in (State.RUNNING, State.PAUSING))
        assert jobs.expire(self.session, None, grace_s=500) == ([job_id] if ends else [])
        assert not ends or self.job(job_id).error_code == "deadline"

    @rule(number=JOBS)
    def waits_too_long(self, number: int) -> None:
        job_id = self.job_ids[number]
        state = self.job(job_id).state
        if state in TERMINAL:
            return
        self.session.execute(sa.update(Job).where(Job.id == job_id).values(queued_at=1.0))
        self.session.execute(
            sa.update(Attempt).where(Attempt.job_id == job_id).values(ended_at=Attempt.started_at - 1e6)
        )
        self.session.execute(
            sa.update(Attempt).where(Attempt.job_id == job_id, Attempt.epoch == self.job(job_id).epoch)
            .values(ended_at=None if state in ACTIVE else Attempt.started_at - 1e6)
        )  # fmt: skip
        assert jobs.expire(self.session, 1e5) == ([job_id] if state == State.QUEUED else [])

    @rule(number=JOBS, wish=st.sampled_from([job_rows.resume, job_rows.pause, job_rows.cancel]))
    def wish(self, number: int, wish: Callable[[Session, str, str], Job | None]) -> None:
        before = self.job(self.job_ids[number])
        state = before.state
        try:
            wish(self.session, before.project_id, before.id)
        except InvalidState:
            assert state in TERMINAL | {State.PAUSING, State.CANCELLING}

    @invariant()
    def what_is_always_true(self) -> None:
        everything = sa.select(Job).where(Job.id.in_(self.job_ids)).execution_options(populate_existing=True)
        found = self.session.scalars(everything).all()
        for job in found:
            assert (job.lease_until is not None) == (job.lease_owner is not None) == (job.state in ACTIVE)
            assert (job.error_code is not None) == (job.error_message is not None) == (job.state == State.FAILED)
            assert job.pause_code is None or job.state in {State.PAUSED, State.CANCELLED}
            assert 0 <= job.attempts_left <= job.max_attempts
            assert job.state not in {State.QUEUED, State.RUNNING} or job.desired == "run"
            self.check_end(job)
        busy = Counter(job.project_id for job in found if job.state in ACTIVE)
        assert all(count <= LIMIT for count in busy.values())

    def check_end(self, job: Job) -> None:
        """Once over it stays as it is."""
        status = wire_status(State(job.state))
        end = (status, job.finished_at, job.error_code, job.error_message, job.final_checkpoint_id)
        if job.id in self.ended:
            assert self.ended[job.id] == end
        elif status in OVER:
            assert job.finished_at is not None
            self.ended[job.id] = end

    def check_history(self, job: Job) -> None:
        """Every attempt is recorded, events have no gap, nothing was told twice, and the end was sent once."""
        rows = attempts.of_job(self.session, job.id)
        assert [row.epoch for row in rows] == list(range(1, job.epoch + 1))
        assert [row.epoch for row in rows if row.outcome is None] == ([job.epoch] if job.state in ACTIVE else [])
        told = events.since(self.session, job.id, 0, 1000)
        assert [event.seq for event in told] == list(range(1, job.event_seq + 1))
        steps = [event.message for event in told if event.type == "metrics"]
        made = [event.message for event in told if event.message.startswith("Checkpoint created")]
        assert len(set(steps)) == len(steps)
        assert len(set(made)) == len(made)
        assert {f"Step {row.step}" for row in metrics.series(self.session, job.id)} == set(steps)
        status = wire_status(State(job.state))
        sent = [delivery.type for delivery in webhooks.of_job(self.session, job.id)]
        assert sent == ([f"fine_tuning.job.{status}"] if status in OVER else [])


@pytest.fixture
def lives(db: Database, make_job: Make, manifest: Manifest) -> type[Lives]:
    """Each run gets new jobs in a transaction that is rolled back."""

    class Bound(Lives):
        def __init__(self) -> None:
            super().__init__()
            self.manifest = manifest
            self.session = Session(db.engine.execution_options(bgpo_write=True), expire_on_commit=False)
            self.job_ids = [self.new(PROJECTS[i % 2]) for i in range(4)]

        def new(self, project_id: str) -> str:
            with db.read() as session:
                template = session.get_one(Job, template_id)
            job = job_rows.again(template, id=new_id(JOB), tuned_model=new_id(JOB), max_attempts=3, resume=None)
            job.project_id, job.webhook_url = project_id, "https://example.com/hook"
            job_rows.insert(self.session, job)
            job_rows.queue(self.session, job.id)
            return job.id

        def teardown(self) -> None:
            try:
                for job_id in self.job_ids:
                    self.check_history(self.job(job_id))
            finally:
                self.session.rollback()
                self.session.close()

    template_id = make_job(state=State.SUCCEEDED)
    return Bound


@pytest.mark.timeout(600)
def test_random_lives(lives: type[Lives]) -> None:
    case = lives.TestCase
    case.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, database=None)
    case("runTest").runTest()
