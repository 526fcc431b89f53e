"""The state machine, walked through completely: every state, every actor, every wish. `test_lives` walks at random."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest
from sqlalchemy.exc import DBAPIError

from jobs.db import Database
from jobs.errors import InvalidState
from jobs.repositories import job_rows, jobs
from jobs.states import TERMINAL, TRANSITIONS, Actor, State, WireStatus, allowed, sources, wire_status
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
