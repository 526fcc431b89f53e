"""When a webhook is written: once for each end of a job that clients see, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.artifacts import Manifest
from jobs.db import Database
from jobs.errors import InvalidState
from jobs.repositories import checkpoints, job_rows, jobs, webhooks
from jobs.repositories.jobs import JobError
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Delivery, Job

Make = Callable[..., str]
MakeRunning = Callable[..., jobs.Claim]

URL = "https://receiver.example/"


def deliveries(db: Database, job_id: str) -> list[Delivery]:
    with db.read() as session:
        return webhooks.of_job(session, job_id)


def types(db: Database, job_id: str) -> list[str]:
    return [row.type.removeprefix("fine_tuning.job.") for row in deliveries(db, job_id)]


def test_success(db: Database, make_running: MakeRunning, manifest: Manifest) -> None:
    claim = make_running(webhook_url=URL)
    with db.transaction() as session:
        assert checkpoints.insert(session, claim.job_id, claim.epoch, 20, "k", manifest, True, {})
    with db.transaction() as session:
        assert jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        assert not jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
    (row,) = deliveries(db, claim.job_id)
    assert (row.type, row.url, row.state, row.attempts) == ("fine_tuning.job.succeeded", URL, "pending", 0)
    assert row.project_id == DEFAULT_PROJECT
    assert row.id.startswith("evt_")


def test_failure(db: Database, make_running: MakeRunning) -> None:
    claim = make_running(webhook_url=URL)
    with db.transaction() as session:
        jobs.finish(session, claim.job_id, claim.epoch, State.FAILED, error=JobError("nan", "loss is NaN"))
    assert types(db, claim.job_id) == ["failed"]


def test_failure_of_a_job_whose_worker_was_lost(
    db: Database, make_running: MakeRunning, set_job: Callable[..., None]
) -> None:
    claim = make_running(webhook_url=URL)
    set_job(claim.job_id, lease_until=0.0, attempts_left=1)
    for _ in range(2):
        with db.transaction() as session:
            jobs.reap(session, 0)
    assert types(db, claim.job_id) == ["failed"]


@pytest.mark.parametrize("state", [State.VALIDATING, State.QUEUED, State.PAUSED])
def test_cancelling_a_job_that_does_not_run(db: Database, make_job: Make, state: State) -> None:
    job_id = make_job(webhook_url=URL, state=state)
    for _ in range(2):
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, job_id)
    assert types(db, job_id) == ["cancelled"]


@pytest.mark.parametrize("end", ["acknowledged", "succeeded", "failed", "handed back", "reaped"])
def test_cancelling_a_running_job_is_told_at_once_and_once(
    db: Database, make_running: MakeRunning, set_job: Callable[..., None], end: str
) -> None:
    claim = make_running(webhook_url=URL)
    with db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
    assert types(db, claim.job_id) == ["cancelled"]
    error = JobError("oom", "no memory")
    if end == "reaped":
        set_job(claim.job_id, lease_until=0.0)
    with db.transaction() as session:
        if end == "reaped":
            jobs.reap(session, 0)
        elif end == "handed back":
            jobs.hand_back(session, claim.job_id, claim.epoch, spend_attempt=True, error=error)
        else:
            target = {"acknowledged": State.CANCELLED}.get(end) or State(end)
            jobs.finish(session, claim.job_id, claim.epoch, target, error=error if end == "failed" else None)
    with db.read() as session:
        assert session.get_one(Job, claim.job_id).state == State.CANCELLED
    assert types(db, claim.job_id) == ["cancelled"]


def test_what_is_no_end_is_not_told(db: Database, make_running: MakeRunning) -> None:
    claim = make_running(webhook_url=URL)
    with db.transaction() as session:
        jobs.hand_back(session, claim.job_id, claim.epoch, spend_attempt=True, error=JobError("worker_lost", "x"))
    with db.transaction() as session:
        job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
        webhooks.enqueue(session, claim.job_id)
        job_rows.resume(session, DEFAULT_PROJECT, claim.job_id)
    assert types(db, claim.job_id) == []


def test_without_url_there_is_nothing_to_send(db: Database, make_job: Make) -> None:
    job_id = make_job()
    with db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, job_id)
    assert types(db, job_id) == []


def test_an_end_that_is_rolled_back_is_not_told(db: Database, make_job: Make) -> None:
    job_id = make_job(webhook_url=URL)

    def end() -> None:
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, job_id)
            assert webhooks.of_job(session, job_id)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        end()
    assert types(db, job_id) == []


def test_contenders_for_the_end_make_one_row(db: Database, make_running: MakeRunning) -> None:
    claim = make_running(webhook_url=URL)
    barrier = threading.Barrier(6)

    def end(index: int) -> None:
        barrier.wait()
        with db.transaction() as session:
            if index % 2:
                error = JobError("nan", "loss is NaN")
                jobs.finish(session, claim.job_id, claim.epoch, State.FAILED, error=error)
            elif session.get_one(Job, claim.job_id).state == State.RUNNING:
                try:
                    job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
                except InvalidState:  # failed meanwhile
                    session.rollback()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(end, range(6)))
    assert len(types(db, claim.job_id)) == 1
