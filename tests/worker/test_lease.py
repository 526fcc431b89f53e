"""A worker that is out of touch: its trainer is dead before anybody else may have the job, and nothing is written."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.db import Database
from jobs.repositories import jobs
from tests.worker.helpers import GetJob, InBackground, MakeJob, RecipeOf, WithTrainer, messages, wait_for
from worker.answering import run_next
from worker.context import WorkerContext
from worker.lease import Lease
from worker.warden import now


def test_a_worker_that_lost_its_lease_kills_its_trainer_and_writes_nothing(
    context: WorkerContext,
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    recipe_of: RecipeOf,
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    attempt = InBackground(context)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    wait_for(lambda: reap_live_lease(db) == [job_id], "the reaping")
    wait_for(lambda: claim_for_another(db, job_id), "the other worker's claim")
    seen = messages(db, job_id)
    attempt.wait()
    job = get_job(job_id)
    assert (job.state, job.epoch, job.lease_owner) == ("running", 2, "another worker")
    assert messages(db, job_id) == seen


def test_without_the_database_the_trainer_is_dead_before_the_lease_ends(
    with_trainer: WithTrainer, db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf
) -> None:
    """The clock of the supervising thread alone does it: here the database hangs instead of failing."""
    job_id = make_job(recipe=recipe_of(100_000))
    worker = with_trainer(self_fence_s=1.5, lease_s=8)
    settings = worker.settings
    attempt = InBackground(worker)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    work, begin = settings.home / "work" / job_id, time.monotonic()
    with db.transaction() as session:  # holds the row (PostgreSQL) or the whole file (SQLite)
        jobs.hold(session, job_id, 1)
        wait_for(lambda: not trainers_of(work), "the trainer's end")
        assert time.monotonic() - begin < settings.lease_s
    attempt.wait()
    job = get_job(job_id)
    if job.state == "queued":  # a renewal that hung came through after all, so the job was still ours to hand back
        assert any("out of touch with the database" in text for text in messages(db, job_id))
    else:  # until somebody reaps it
        assert (job.state, job.epoch) == ("running", 1)


def test_a_renewal_that_comes_too_late_brings_no_trainer_back(
    with_trainer: WithTrainer, db: Database, make_job: MakeJob
) -> None:
    job_id = make_job()
    settings = with_trainer(beat_s=0.1, self_fence_s=1, lease_s=60).settings
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, "this worker", settings.lease_s)
    assert claim is not None
    lease = Lease(db, settings, job_id, claim.epoch, now())
    lease.start()
    try:
        wait_for(lambda: lease.age < 0.5, "a renewal in time")
        with db.transaction() as session:
            jobs.hold(session, job_id, claim.epoch)
            wait_for(lambda: lease.expired, "the fence")
        wait_for(lambda: lease.age < settings.self_fence_s, "a renewal that is too late")
        assert lease.expired
        assert not lease.lost
    finally:
        lease.stop()


def test_a_trainer_outlives_its_fence_for_as_long_as_the_lease_is_renewed(
    make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf, with_trainer: WithTrainer
) -> None:
    job_id = make_job(recipe=recipe_of(160))  # eight seconds
    run_next(with_trainer(self_fence_s=4, lease_s=8))
    assert (get_job(job_id).state, get_job(job_id).epoch) == ("succeeded", 1)


def claim_for_another(db: Database, job_id: str) -> bool:
    """Claim; a row that the first worker still tries to write to is skipped, as by any claim."""
    with db.transaction() as session:
        return jobs.claim(session, job_id, "another worker", 60) is not None


def reap_live_lease(db: Database) -> list[str]:
    """Reap as if 100 s had passed without a renewal; a row that is being written to is left for the next round."""
    with db.transaction() as session:
        return jobs.reap(session, -100)


def trainers_of(work: Path) -> list[int]:
    """Processes whose working directory lies in a job's work folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(entry, "cwd").readlink().is_relative_to(work):
                found.append(int(entry.name))
        except OSError:  # ended while we looked
            continue
    return found
