"""The reconciler's rounds: each duty, and that one that fails does not keep the others from their turn."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.db import Database
from jobs.repositories import jobs, workers
from jobs.tables import Worker
from tests.worker.helpers import GetJob, MakeJob, SetJob, wait_for
from worker import reconciler
from worker.context import WorkerContext
from worker.reconciler import Reconciler, beat, reconcile, tidy


def test_a_broker_that_does_not_answer_is_asked_once_a_round(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time out of a frozen one would keep the worker from reporting itself alive."""
    jobs_made = [make_job() for _ in range(3)]
    asked: list[str] = []
    monkeypatch.setattr(context.doorbell, "ring", lambda bell: asked.append(bell.job_id))
    reconciler.ring_again(context)
    assert len(asked) == 1
    assert [get_job(job_id).rung_at for job_id in jobs_made] == [None, None, None]


def claim(db: Database, job_id: str, lease_s: float = 60) -> int:
    with db.transaction() as session:
        claimed = jobs.claim(session, job_id, "a worker", lease_s)
    assert claimed is not None
    return claimed.epoch


def test_a_round_rings_reaps_and_ends_what_is_overdue(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, set_job: SetJob
) -> None:
    waiting, lost, overdue = make_job(), make_job(), make_job()
    claim(db, lost, lease_s=-1)
    set_job(overdue, queued_at=0.0, created_at=0.0)
    impatient = context.settings.model_copy(update={"max_queue_age_s": 3600.0})
    reconcile(replace(context, settings=impatient))
    assert get_job(waiting).rung_at is not None
    assert (get_job(lost).state, get_job(lost).attempts_left) == ("queued", 2)
    assert (get_job(overdue).state, get_job(overdue).error_code) == ("failed", "queue_timeout")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_duty_that_fails_keeps_no_other_from_its_turn(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()

    def broken(context: WorkerContext) -> None:
        raise ZeroDivisionError

    away = replace(context, database=Database("postgresql://bgpo@127.0.0.1:1/bgpo"))
    reconcile(context, (broken, lambda _: reconciler.reap(away), reconciler.ring_again))
    assert get_job(job_id).rung_at is not None


def test_only_folders_of_attempts_that_are_over_are_removed(
    context: WorkerContext, db: Database, make_job: MakeJob, set_job: SetJob
) -> None:
    running, over = make_job(), make_job()
    claim(db, running)
    for _ in range(2):
        claim(db, over, lease_s=-1)
        with db.transaction() as session:
            jobs.reap(session, 0)
        set_job(over, not_before=0.0)
    work = context.settings.home / "work"
    for name in (f"{running}/1", f"{over}/1", f"{over}/2", "ftjob-of-another-database/1", f"{running}/notes"):
        (work / name).mkdir(parents=True)
        (work / name / "file").touch()
    tidy(context)
    left = sorted(str(path.relative_to(work)) for path in work.glob("*/*"))
    assert left == sorted([f"{running}/1", "ftjob-of-another-database/1", f"{running}/notes"])
    assert not (work / over).exists()


def shown(db: Database) -> Worker:
    with db.read() as session:
        (row,) = workers.list(session)
    return row


def test_the_registry_shows_what_a_worker_does(context: WorkerContext, db: Database) -> None:
    beat(context)
    assert (shown(db).state, shown(db).gpus, shown(db).devices) == ("idle", 1, list(context.slot.devices))
    context.activity.problem = "no room"
    beat(context)
    assert (shown(db).state, shown(db).problem) == ("unfit", "no room")
    with context.activity.on("ftjob-1"):
        context.activity.problem = None
        beat(context)
        assert (shown(db).state, shown(db).job_id) == ("busy", "ftjob-1")
        context.draining.set()
        beat(context)
        assert (shown(db).state, shown(db).job_id) == ("draining", "ftjob-1")
    beat(context)
    assert (shown(db).state, shown(db).job_id) == ("draining", None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_slow_receivers_and_stores_delay_no_round(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, released = threading.Semaphore(0), threading.Event()

    def hang(*args: object) -> None:
        stuck.release()
        released.wait(60)

    monkeypatch.setattr(reconciler, "deliver_due", hang)
    monkeypatch.setattr(reconciler, "sweep", hang)
    rounds = Reconciler(context, is_worker=False)
    rounds.start()
    try:
        assert stuck.acquire(timeout=20)
        assert stuck.acquire(timeout=20)
        job_id = make_job()
        wait_for(lambda: get_job(job_id).rung_at is not None, "a later round")
    finally:
        released.set()
        rounds.stop()
        rounds.join()


def test_orphans_are_swept_up(context: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()
    monkeypatch.setattr(reconciler, "sweep", lambda *args: seen.set())
    rounds = Reconciler(context, is_worker=True)
    rounds.start()
    assert seen.wait(20)
    rounds.stop()
    rounds.join()
