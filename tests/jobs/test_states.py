"""The state machine, walked through completely: every state, every actor, every wish and end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobs.artifacts import Manifest
from jobs.db import Database
from jobs.errors import InvalidState
from jobs.repositories import checkpoints, job_rows, jobs
from jobs.repositories.jobs import JobError
from jobs.states import ACTIVE, TERMINAL, TRANSITIONS, Actor, State, WireStatus, allowed, sources, wire_status
from jobs.tables import DEFAULT_PROJECT, Job

Make = Callable[..., str]
Get = Callable[[str], Job]


def test_nothing_leaves_a_terminal_state_and_everything_can_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in TERMINAL]
    reached = set(TERMINAL)
    for _ in State:
        reached |= {source for source, target in TRANSITIONS if target in reached}
    assert reached == set(State)


def test_wire_statuses_are_those_of_the_contract() -> None:
    assert {wire_status(state) for state in State} == set(get_args(WireStatus))
    assert {wire_status(state) for state in TERMINAL} == {"succeeded", "failed", "cancelled"}


def test_every_move_is_allowed_exactly_when_the_table_says(db: Database, make_job: Make, get_job: Get) -> None:
    job_ids = {pair: make_job(state=pair[0]) for pair in product(State, State)}
    for (source, target), job_id in job_ids.items():
        for actor in Actor:
            with db.transaction() as session:
                moved = jobs.move(session, job_id, target, actor)
                session.rollback()
            assert moved == allowed(source, target, actor) == (source in sources(target, actor))
        assert get_job(job_id).state == source


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_the_database_itself_refuses_to_change_a_finished_job(
    db: Database, make_job: Make, set_job: Callable[..., None], state: State
) -> None:
    job_id = make_job(state=state)
    for change in ({"state": "queued"}, {"epoch": 9}, {"finished_at": 1.0}, {"error_code": "x"}):
        with pytest.raises(DBAPIError, match="a finished job never changes"):
            set_job(job_id, **change)
    set_job(job_id, event_seq=7)


@pytest.mark.parametrize("wish", ["cancel", "pause", "resume"])
@pytest.mark.parametrize("state", sorted(State))
def test_wishes_in_every_state(db: Database, make_job: Make, get_job: Get, state: State, wish: str) -> None:
    """A wish ends in a state that fits it, or is refused and changes nothing; asking twice is asking once."""
    job_id = make_job(state=state)
    fitting = {
        "cancel": {State.CANCELLED, State.CANCELLING},
        "pause": {State.PAUSED, State.PAUSING},
        "resume": {State.QUEUED, State.RUNNING, State.VALIDATING},
    }[wish]
    outcomes = []
    for _ in range(2):
        before = get_job(job_id)
        try:
            with db.transaction() as session:
                getattr(job_rows, wish)(session, DEFAULT_PROJECT, job_id)
        except InvalidState:
            after = get_job(job_id)
            assert (after.state, after.event_seq, after.desired) == (before.state, before.event_seq, before.desired)
            assert state in TERMINAL | {State.CANCELLING, State.PAUSING, State.VALIDATING}
        else:
            assert get_job(job_id).state in fitting
        outcomes.append((get_job(job_id).state, get_job(job_id).event_seq))
    assert outcomes[0] == outcomes[1]


class Life(RuleBasedStateMachine):
    """Random lives of one job with several workers, stale ones included."""

    session: Session
    job_id: str
    manifest: Manifest

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []
        self.ended: tuple[str, float | None, str | None] | None = None
        self.step = 0

    @property
    def job(self) -> Job:
        return self.session.get_one(Job, self.job_id, populate_existing=True)

    @rule()
    def claim(self) -> None:
        ready = self.job.state == State.QUEUED and self.job.desired == "run"
        claim = jobs.claim(self.session, self.job_id, "w", 60)
        assert (claim is not None) == ready
        if claim is not None:
            assert claim.epoch == len(self.epochs) + 1
            self.epochs.append(claim.epoch)

    @precondition(lambda self: self.epochs)
    @rule()
    def checkpoint(self) -> None:
        self.step += 1
        made = checkpoints.insert(self.session, self.job_id, self.epochs[-1], self.step, "k", self.manifest, True, {})
        assert (made is not None) == (self.job.state in (State.RUNNING, State.PAUSING))

    @precondition(lambda self: self.epochs)
    @rule()
    def crash(self) -> None:
        active = self.job.state in ACTIVE
        args = {"spend_attempt": True, "error": JobError("worker_lost", "x")}
        assert jobs.hand_back(self.session, self.job_id, self.epochs[-1], **args) == active

    @precondition(lambda self: self.epochs)
    @rule()
    def fail(self) -> None:
        active = self.job.state in ACTIVE
        error = JobError("x", "y")
        assert jobs.finish(self.session, self.job_id, self.epochs[-1], State.FAILED, error=error) == active

    @precondition(lambda self: self.epochs and self.job.final_checkpoint_id)
    @rule()
    def succeed(self) -> None:
        active = self.job.state in ACTIVE
        assert jobs.finish(self.session, self.job_id, self.epochs[-1], State.SUCCEEDED) == active

    @precondition(lambda self: len(self.epochs) > 1)
    @rule()
    def stale_worker(self) -> None:
        old = self.epochs[-2]
        assert jobs.renew(self.session, self.job_id, old, 60) is None
        assert not jobs.hand_back(
            self.session, self.job_id, old, spend_attempt=True, error=JobError("worker_lost", "x")
        )
        assert not jobs.finish(self.session, self.job_id, old, State.SUCCEEDED)

    @rule()
    def lease_ends(self) -> None:
        active = self.job.state in ACTIVE
        leased = (Job.id == self.job_id, Job.lease_until.is_not(None))
        self.session.execute(sa.update(Job).where(*leased).values(lease_until=0.0))
        assert (jobs.reap(self.session, 10) == [self.job_id]) == active

    @rule()
    def cancel(self) -> None:
        self._wish(job_rows.cancel)

    @rule()
    def pause(self) -> None:
        self._wish(job_rows.pause)

    @rule()
    def resume(self) -> None:
        self._wish(job_rows.resume)

    def _wish(self, wish: Callable[[Session, str, str], Job | None]) -> None:
        try:
            wish(self.session, DEFAULT_PROJECT, self.job_id)
        except InvalidState:
            assert self.job.state in TERMINAL | {State.PAUSING, State.CANCELLING}

    @invariant()
    def what_is_always_true(self) -> None:
        job = self.job
        assert job.epoch == len(self.epochs)
        assert (job.lease_until is not None) == (job.state in ACTIVE)
        assert (job.error_code is not None) == (job.state == State.FAILED)
        assert 0 <= job.attempts_left <= job.max_attempts
        if self.ended is not None:
            assert (job.state, job.finished_at, job.error_code) == self.ended
        if job.state in TERMINAL:
            assert job.finished_at is not None
            self.ended = (job.state, job.finished_at, job.error_code)


@pytest.fixture
def life(db: Database, make_job: Make, manifest: Manifest) -> type[Life]:
    """Each run gets a new job in a transaction that is rolled back."""

    class Bound(Life):
        def __init__(self) -> None:
            super().__init__()
            self.manifest = manifest
            self.job_id = make_job()
            self._open = Session(db.engine.execution_options(bgpo_write=True), expire_on_commit=False)
            self.session = self._open

        def teardown(self) -> None:
            self._open.rollback()
            self._open.close()

    return Bound


def test_random_lives(life: type[Life]) -> None:
    case = life.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, database=None)
    case("runTest").runTest()
