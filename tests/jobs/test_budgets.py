"""Budgets of single jobs: when they are used up, and what becomes of the job then. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.artifacts import Manifest
from jobs.db import Database, now
from jobs.repositories import budgets, checkpoints, events, job_rows, jobs, judge_usage
from jobs.tables import DEFAULT_PROJECT, Attempt, Checkpoint, Job

MakeRunning = Callable[..., jobs.Claim]
GetJob = Callable[[str], Job]


def budget(on_exceed: str = "pause", **limits: float) -> dict[str, Any]:
    return {"gpu_seconds": None, "judge_tokens": None, "on_exceed": on_exceed, **limits}


def run_for(db: Database, job_id: str, seconds: float) -> None:
    with db.transaction() as session:
        attempt = sa.update(Attempt).where(Attempt.job_id == job_id)
        session.execute(attempt.values(started_at=now() - seconds, ended_at=now()))


def judged(db: Database, claim: jobs.Claim, tokens: int) -> None:
    with db.transaction() as session:
        values = {"judge_tokens/critic/prompt": float(tokens)}
        judge_usage.add_step(session, claim.job_id, claim.epoch, 1, "train", values)


def overrunning(db: Database) -> list[str]:
    with db.transaction() as session:
        return budgets.pause_overrunning(session)


def save(db: Database, claim: jobs.Claim, step: int, manifest: Manifest) -> str:
    with db.transaction() as session:
        made = checkpoints.insert(session, claim.job_id, claim.epoch, step, f"c/{step}", manifest, False, {})
    assert made is not None
    return made


def test_only_jobs_beyond_their_own_budget_pause(
    db: Database, make_running: MakeRunning, make_job: Callable[..., str], get_job: GetJob
) -> None:
    seconds = make_running(gpus=2, budget=budget(gpu_seconds=200))
    tokens = make_running(budget=budget(judge_tokens=10))
    free = make_running()
    waiting = make_job(budget=budget(gpu_seconds=1))
    for claim, ran in ((seconds, 99), (tokens, 1000), (free, 1000)):
        run_for(db, claim.job_id, ran)
    judged(db, tokens, 9)
    judged(db, free, 1000)
    assert overrunning(db) == []
    run_for(db, seconds.job_id, 101)
    assert overrunning(db) == [seconds.job_id]
    with db.transaction() as session:
        judge_usage.add_step(session, tokens.job_id, 1, 2, "train", {"judge_tokens/critic/completion": 1.0})
    assert overrunning(db) == [tokens.job_id]
    assert overrunning(db) == []
    for claim, said in (
        (seconds, "the job has used 202 of the 200 accelerator-seconds of its budget"),
        (tokens, "the job has used 10 of the 10 judge tokens of its budget"),
    ):
        job = get_job(claim.job_id)
        assert (job.state, job.desired, job.pause_code) == ("pausing", "pause", "budget_exceeded")
        assert job.pause_message is not None
        assert job.pause_message.startswith(said)
        with db.read() as session:
            message = events.page(session, job.id, before_seq=None, limit=1)[0].message
        assert message.startswith(f"Pausing after the next checkpoint: {said}")
        with db.transaction() as session:
            assert jobs.finish(session, claim.job_id, claim.epoch, "paused")
        assert get_job(claim.job_id).state == "paused"
    assert (get_job(free.job_id).state, get_job(waiting).state) == ("running", "queued")


def test_an_interrupted_job_beyond_its_budget_waits_no_longer(
    db: Database, make_running: MakeRunning, get_job: GetJob
) -> None:
    claim = make_running(budget=budget("stop", gpu_seconds=10))
    with db.transaction() as session:
        error = jobs.JobError("worker_lost", "gone")
        jobs.hand_back(session, claim.job_id, claim.epoch, error=error, spend_attempt=False)
    run_for(db, claim.job_id, 11)
    assert overrunning(db) == [claim.job_id]
    job = get_job(claim.job_id)
    assert (job.state, job.pause_code) == ("paused", "budget_exceeded")


def test_a_job_that_stops_succeeds_with_its_last_checkpoint(
    db: Database, make_running: MakeRunning, get_job: GetJob, manifest: Manifest
) -> None:
    claim = make_running(budget=budget("stop", gpu_seconds=10))
    run_for(db, claim.job_id, 11)
    save(db, claim, 2, manifest)
    assert overrunning(db) == [claim.job_id]
    last = save(db, claim, 4, manifest)
    with db.transaction() as session:
        assert jobs.finish(session, claim.job_id, claim.epoch, "paused")
    job = get_job(claim.job_id)
    assert (job.state, job.final_checkpoint_id, job.pause_code) == ("succeeded", last, "budget_exceeded")
    assert len(job.result_files or []) == 2
    with db.read() as session:
        told = [event.message for event in events.page(session, job.id, before_seq=None, limit=3)]
        assert session.get_one(Checkpoint, last).final
        assert session.get_one(Attempt, (job.id, claim.epoch)).outcome == "succeeded"
    assert told[0] == "The job has successfully completed"
    assert told[2] == "Stopped at step 4: the job has used 11 of the 10 accelerator-seconds of its budget"


def test_without_a_checkpoint_it_fails(db: Database, make_running: MakeRunning, get_job: GetJob) -> None:
    claim = make_running(budget=budget("stop", gpu_seconds=10))
    run_for(db, claim.job_id, 11)
    overrunning(db)
    with db.transaction() as session:
        assert jobs.finish(session, claim.job_id, claim.epoch, "paused")
    job = get_job(claim.job_id)
    assert (job.state, job.error_code) == ("failed", "budget_exceeded")


@pytest.mark.parametrize("why", ["user", "project", "raised"])
def test_what_pauses_for_another_reason_does_not_stop(
    db: Database, make_running: MakeRunning, get_job: GetJob, manifest: Manifest, why: str
) -> None:
    claim = make_running(budget=budget("stop", gpu_seconds=10))
    save(db, claim, 2, manifest)
    with db.transaction() as session:
        if why == "user":
            job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
        elif why == "project":
            budgets.pause(session, DEFAULT_PROJECT, jobs.JobError("budget_exceeded", "the project has used all"))
    if why != "project":
        run_for(db, claim.job_id, 11)
    if why == "raised":
        assert overrunning(db) == [claim.job_id]
        with db.transaction() as session:
            session.execute(sa.update(Job).where(Job.id == claim.job_id).values(budget=budget("stop", gpu_seconds=99)))
    with db.transaction() as session:
        assert jobs.finish(session, claim.job_id, claim.epoch, "paused")
    assert get_job(claim.job_id).state == "paused"


def test_a_job_that_ends_while_it_pauses_was_not_stopped(
    db: Database, make_running: MakeRunning, get_job: GetJob, manifest: Manifest
) -> None:
    claim = make_running(budget=budget("stop", gpu_seconds=10))
    run_for(db, claim.job_id, 11)
    overrunning(db)
    with db.transaction() as session:
        checkpoints.insert(session, claim.job_id, claim.epoch, 20, "c/20", manifest, True, {})
        assert jobs.finish(session, claim.job_id, claim.epoch, "succeeded")
    job = get_job(claim.job_id)
    assert (job.state, job.pause_code) == ("succeeded", None)
