"""The order of the queue against a model of it, and what many workers make of it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from jobs.db import Database
from jobs.ids import JOB, new_id
from jobs.repositories import job_rows, jobs, queue
from jobs.resources import Slot
from jobs.states import State
from jobs.tables import Attempt, Job

Make = Callable[..., str]
PROJECTS = ("proj_a", "proj_b", "proj_c")
LATER = 4e9


@dataclass(frozen=True)
class Entry:
    """A queued or running job of a generated queue."""

    project_id: str
    priority: int
    queued_at: float
    gpus: int = 1
    gpu_type: str | None = None
    running: bool = False
    due: bool = True
    id: str = field(default_factory=lambda: new_id(JOB))

    def row(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("id", "project_id", "priority", "gpus", "gpu_type")}
        return values | {
            "queued_at": self.queued_at,
            "created_at": 1.0,
            "not_before": 0.0 if self.due else LATER,
            "state": State.RUNNING if self.running else State.QUEUED,
            "epoch": int(self.running),
            "lease_until": LATER if self.running else None,
            "request_hash": "0",
            "model": "tiny",
            "training_file": "file-train",
            "seed": 1,
            "method": {},
            "recipe": {},
            "tuned_model": self.id,
            "total_steps": 1,
            "desired": "run",
            "attempts_left": 3,
            "max_attempts": 3,
        }


def entries(*, types: Sequence[str | None], gpus: int = 1, all_due: bool = False) -> st.SearchStrategy[list[Entry]]:
    entry = st.builds(
        Entry,
        project_id=st.sampled_from(PROJECTS),
        priority=st.sampled_from([-1, 0, 1]),
        queued_at=st.integers(1, 4).map(float),  # few, so that many are equal
        gpus=st.integers(1, gpus),
        gpu_type=st.sampled_from(types),
        running=st.sampled_from([False, False, False, True]),
        due=st.just(True) if all_due else st.sampled_from([True, True, True, False]),
    )
    return st.lists(entry, max_size=12)


def served(session: Session, slot: Slot, max_running: int | None) -> list[str]:
    """The jobs that workers like `slot` get, one after the other, until there is none for them."""
    order: list[str] = []
    while (claim := jobs.claim_next(session, slot, 60, max_running=max_running)) is not None:
        order.append(claim.job_id)
    return order


def expected(made: Sequence[Entry], slot: Slot, max_running: int | None) -> list[str]:
    """The same in plain words: of the most urgent that may start, of the project that runs least, the oldest."""
    running = {project: sum(one.running for one in made if one.project_id == project) for project in PROJECTS}
    waiting = [one for one in made if not one.running and one.due and one.gpus <= slot.gpus]
    waiting = [one for one in waiting if one.gpu_type in (None, slot.gpu_type)]
    order: list[str] = []
    while True:
        may = [one for one in waiting if max_running is None or running[one.project_id] < max_running]
        if not may:
            return order
        top = max(one.priority for one in may)
        urgent = [one for one in may if one.priority == top]
        least = min(running[one.project_id] for one in urgent)
        chosen = min((one.queued_at, one.id, one) for one in urgent if running[one.project_id] == least)[2]
        waiting.remove(chosen)
        running[chosen.project_id] += 1
        order.append(chosen.id)


class Rollback:
    """Sessions that see the same empty database, and leave it so."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def __call__(self, made: Sequence[Entry], check: Callable[[Session], None]) -> None:
        with self._db.transaction() as session:
            if made:
                session.execute(sa.insert(Job), [one.row() for one in made])
            check(session)
            session.rollback()


@pytest.fixture
def in_queue(db: Database) -> Rollback:
    return Rollback(db)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("max_running", [None, 1, 2])
def test_workers_are_served_in_the_order_of_the_model(in_queue: Rollback, max_running: int | None) -> None:
    slot = Slot("w", gpu_type="h200", devices=("a", "b"))

    @settings(max_examples=40, deadline=None, database=None)
    @given(entries(types=(None, "h200", "a100"), gpus=3))
    def check(made: list[Entry]) -> None:
        def compare(session: Session) -> None:
            assert served(session, slot, max_running) == expected(made, slot, max_running)

        in_queue(made, compare)

    check()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("max_running", [None, 1, 2])
def test_positions_are_the_order_in_which_jobs_are_served(in_queue: Rollback, max_running: int | None) -> None:
    slot = Slot("w", gpu_type="h200", devices=("a",))

    @settings(max_examples=40, deadline=None, database=None)
    @given(entries(types=(None, "h200"), all_due=True))
    def check(made: list[Entry]) -> None:
        def compare(session: Session) -> None:
            places: dict[str, int] = {}
            for project in PROJECTS:
                places |= queue.positions(session, project, max_running=max_running)
            assert sorted(places.values()) == list(range(1, len(places) + 1))
            for job in session.scalars(sa.select(Job)):
                assert queue.position_of(session, job, max_running=max_running) == places.get(job.id)
            order = served(session, slot, max_running)
            assert {job_id: places[job_id] for job_id in order} == {job_id: i + 1 for i, job_id in enumerate(order)}

        in_queue(made, compare)

    check()


def test_jobs_for_other_accelerators_are_not_ahead(db: Database, make_job: Make) -> None:
    others = [make_job(gpu_type="a100", priority=1) for _ in range(3)]
    mine, any_kind = make_job(gpu_type="h200"), make_job()
    with db.read() as session:
        places = queue.positions(session, "proj_default")
        assert places == {others[0]: 1, others[1]: 2, others[2]: 3, mine: 1, any_kind: 5}


def test_a_job_that_cannot_start_holds_up_neither_its_project_nor_others(db: Database, make_job: Make) -> None:
    make_job(gpus=8, priority=1)
    make_job(not_before=LATER, priority=1)
    small = make_job(priority=0)
    with db.transaction() as session:
        assert served(session, Slot("w"), 1) == [small]


def test_a_claim_is_filled_from_the_slot_and_the_job(db: Database, make_job: Make) -> None:
    job_id = make_job(gpus=2, gpu_type="h200", max_runtime_s=100.0)
    with db.transaction() as session:
        claim = jobs.claim_next(session, Slot("w", "host-1", "h200", ("a", "b")), 60)
    assert claim is not None
    assert (claim.job_id, claim.epoch, claim.gpus, claim.gpu_type) == (job_id, 1, 2, "h200")
    assert (claim.runtime_left_s, claim.oom_step) == (100.0, None)
    with db.read() as session:
        attempt = session.get_one(Attempt, (job_id, 1))
    assert (attempt.worker_id, attempt.host, attempt.ended_at) == ("w", "host-1", None)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_claimers_do_not_wait_for_each_other(db: Database, make_job: Make) -> None:
    first, second = make_job(), make_job()
    with db.transaction() as one, db.transaction() as two:
        two.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        claims = [jobs.claim_next(session, Slot(name), 60) for session, name in ((one, "w1"), (two, "w2"))]
        assert [claim.job_id if claim else None for claim in claims] == [first, second]
        two.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        assert jobs.claim_next(two, Slot("w3"), 60) is None


def race(db: Database, workers: int, max_running: int | None) -> list[str]:
    """Each of the workers claims until there is nothing for it; what they got."""
    got: list[str] = []
    failures: list[BaseException] = []
    barrier = threading.Barrier(workers)

    def work(name: str) -> None:
        try:
            barrier.wait(30)
            while True:
                with db.transaction() as session:
                    claim = jobs.claim_next(session, Slot(name), 60, max_running=max_running)
                if claim is None:
                    return
                got.append(claim.job_id)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    return got


def test_many_workers_take_every_job_once(db: Database, make_job: Make) -> None:
    made = [make_job(project_id=PROJECTS[i % 3], priority=i % 2) for i in range(24)]
    assert sorted(race(db, 6, None)) == sorted(made)
    with db.read() as session:
        assert {attempt.epoch for attempt in session.scalars(sa.select(Attempt))} == {1}


@pytest.mark.parametrize("attempt", range(3))
def test_the_limit_of_a_project_holds_when_workers_claim_at_once(db: Database, make_job: Make, attempt: int) -> None:
    for i in range(16):
        make_job(project_id=PROJECTS[i % 2])
    assert len(race(db, 8, 2)) == 4
    with db.read() as session:
        assert [queue.running(session, project) for project in PROJECTS] == [2, 2, 0]


def test_the_limit_of_waiting_jobs_holds_when_requests_come_at_once(db: Database) -> None:
    barrier = threading.Barrier(6)

    def enter(_: int) -> None:
        barrier.wait(30)
        for _ in range(3):
            with db.transaction() as session:
                if job_rows.count_queued(session, "proj_a") < 5:
                    job_rows.insert(session, Job(**Entry("proj_a", 0, 1.0).row()))

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with db.transaction() as session:
        assert job_rows.count_queued(session, "proj_a") == 5
        assert job_rows.count_queued(session, "proj_b") == 0


def test_finished_jobs_are_not_read(db: Database) -> None:
    done = [Entry(PROJECTS[i % 3], 0, 1.0).row() | {"state": "succeeded", "finished_at": 1.0} for i in range(5000)]
    waiting = [Entry(PROJECTS[i % 3], 0, 1.0).row() for i in range(20)]
    with db.transaction() as session:
        session.execute(sa.insert(Job), done + waiting)
    if db.engine.dialect.name == "postgresql":
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE jobs")
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "jobs" in statement and statement.lstrip().startswith(("SELECT", "WITH")):
            prefix = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
            own = connection.connection.cursor()
            own.execute(prefix + statement, parameters)
            plans.append(statement + "\n" + "\n".join(str(row[-1]) for row in own.fetchall()))

    sa.event.listen(db.engine, "before_cursor_execute", explain)
    try:
        with db.transaction() as session:
            job = session.get_one(Job, waiting[0]["id"])
            queue.waiting(session, job, max_running=1)
            queue.snapshot(session, PROJECTS[0], max_running=1)
            job_rows.count_queued(session, PROJECTS[0])
            jobs.to_ring(session)
            jobs.reap(session, 10)
            jobs.expire(session, 1e12)
            assert jobs.claim_next(session, Slot("w"), 60, max_running=1) is not None
    finally:
        sa.event.remove(db.engine, "before_cursor_execute", explain)
    assert len(plans) >= 10
    for plan in plans:
        scans = ("Seq Scan on jobs", "SCAN jobs\n", "SCAN jobs_1\n")
        assert not any(scan in plan + "\n" for scan in scans), plan
