"""What ends a trainer before it is done: the user, a drain, a deadline, silence, a full disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import StorageFull
from jobs.db import Database
from jobs.repositories import checkpoints, job_rows, jobs, metrics
from jobs.tables import DEFAULT_PROJECT
from tests.worker.helpers import (
    GetJob,
    InBackground,
    MakeJob,
    RecipeOf,
    SetJob,
    WithTrainer,
    attempts_of,
    events_of,
    wait_for,
)
from worker.answering import run_next


@pytest.mark.parametrize("mode", ["normal", "deaf"])
def test_cancel_ends_the_trainer_even_if_it_does_not_listen(
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    with_trainer: WithTrainer,
    recipe_of: RecipeOf,
) -> None:
    monkeypatch.setattr("worker.watch.TERM_GRACE_S", 0.5)
    job_id = make_job(recipe=recipe_of(100_000))
    attempt = InBackground(with_trainer(mode))
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    with db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, job_id)
    attempt.wait()
    assert get_job(job_id).state == "cancelled"


def test_pause_writes_a_checkpoint_and_resume_goes_on_from_it(
    db: Database, make_job: MakeJob, get_job: GetJob, set_job: SetJob, recipe_of: RecipeOf, with_trainer: WithTrainer
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    worker = with_trainer(stop_grace_s=30)
    attempt = InBackground(worker)
    wait_for(lambda: get_job(job_id).last_step > 2, "a step")
    with db.transaction() as session:
        job_rows.pause(session, DEFAULT_PROJECT, job_id)
    attempt.wait()
    paused = get_job(job_id)
    with db.read() as session:
        saved = checkpoints.by_id(session, str(paused.resume_checkpoint_id))
    assert saved is not None
    assert (paused.state, paused.attempts_left, saved.step) == ("paused", 3, paused.last_step)

    with db.transaction() as session:
        job_rows.resume(session, DEFAULT_PROJECT, job_id)
    set_job(job_id, recipe=recipe_of(saved.step + 4))
    run_next(worker)
    assert get_job(job_id).state == "succeeded"
    with db.read() as session:
        series = metrics.series(session, job_id, names=["reward_mean"])
    assert [point.step for point in series if point.epoch == 2] == list(range(saved.step + 1, saved.step + 5))


def test_draining_hands_the_job_back_without_spending_an_attempt(
    make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf, with_trainer: WithTrainer
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    worker = with_trainer(stop_grace_s=30)
    attempt = InBackground(worker)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    worker.draining.set()
    attempt.wait()
    job = get_job(job_id)
    assert (job.state, job.attempts_left, job.resume_checkpoint_id is not None) == ("queued", 3, True)
    run_next(worker)
    assert get_job(job_id).epoch == 1, "a draining worker takes nothing"


def test_a_pause_before_the_first_step_keeps_nothing_and_loses_nothing(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("loading", stop_grace_s=60)
    attempt = InBackground(worker)
    wait_for(lambda: get_job(job_id).phase == "loading_model", "the loading")
    with db.transaction() as session:
        job_rows.pause(session, DEFAULT_PROJECT, job_id)
    attempt.wait(20)  # no waiting for a trainer that has nothing to save
    job = get_job(job_id)
    assert (job.state, job.resume_checkpoint_id, job.attempts_left) == ("paused", None, 3)
    with db.transaction() as session:
        job_rows.resume(session, DEFAULT_PROJECT, job_id)
    run_next(with_trainer())
    assert get_job(job_id).state == "succeeded"


def test_a_pause_during_a_save_waits_for_it(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    attempt = InBackground(with_trainer("slow-save", stop_grace_s=30))
    wait_for(lambda: get_job(job_id).phase == "checkpointing", "a save")
    with db.transaction() as session:
        job_rows.pause(session, DEFAULT_PROJECT, job_id)
    attempt.wait()
    paused = get_job(job_id)
    with db.read() as session:
        steps = [row.step for row in checkpoints.page(session, job_id, after=None, limit=10)]
        saved = checkpoints.by_id(session, str(paused.resume_checkpoint_id))
    assert paused.state == "paused"
    assert saved is not None
    assert saved.step == max(steps) == paused.last_step


def test_draining_while_the_model_loads_hands_the_job_back_at_once(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("loading", stop_grace_s=60)
    attempt = InBackground(worker)
    wait_for(lambda: get_job(job_id).phase == "loading_model", "the loading")
    worker.draining.set()
    attempt.wait(20)
    assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 3)


def test_a_drain_that_comes_with_the_claim_gives_the_job_back(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()
    worker = with_trainer()
    real = jobs.claim_next

    def claim_next(*args: Any, **kwargs: Any) -> Any:
        worker.draining.set()
        return real(*args, **kwargs)

    monkeypatch.setattr("worker.answering.jobs.claim_next", claim_next)
    run_next(worker)
    assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 3)


@pytest.mark.parametrize(("mode", "step"), [("stalled", 2), ("silent", None), ("loading", None)])
def test_a_trainer_that_hangs_is_killed_and_its_job_goes_on(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, mode: str, step: int | None
) -> None:
    job_id = make_job()
    slow_start = mode == "stalled"
    run_next(with_trainer(mode, stall_s=2 if slow_start else 600, stall_loading_s=600 if slow_start else 2))
    (attempt,) = attempts_of(db, job_id)
    assert (attempt.error_code, attempt.signal) == ("stalled", 9)
    assert attempt.error_phase == ("rollout" if slow_start else "loading_model")
    run_next(with_trainer(mode if slow_start else "normal"))
    assert get_job(job_id).state == "succeeded"
    assert [row.resumed_step for row in attempts_of(db, job_id)] == [None, step]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_trainer_that_waits_for_the_database_is_not_silent(
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    recipe_of: RecipeOf,
    with_trainer: WithTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.recorder._MAX_QUEUED", 3)
    job_id = make_job(recipe=recipe_of(60))
    attempt = InBackground(with_trainer(stall_s=1, self_fence_s=40, lease_s=60))
    wait_for(lambda: get_job(job_id).last_step > 0, "a step")
    with db.transaction():  # nobody else can write
        time.sleep(4)  # four times its limit
    attempt.wait()
    assert (get_job(job_id).state, get_job(job_id).epoch) == ("succeeded", 1)


def test_uploads_after_the_trainers_end_are_no_silence(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()
    worker = with_trainer(stall_s=1)
    real = worker.store.publish_directory

    def slowly(directory: Path, key: str, **kwargs: Any) -> Any:
        if directory.name == "step-000006":
            time.sleep(3)
        return real(directory, key, **kwargs)

    monkeypatch.setattr(worker.store, "publish_directory", slowly)
    run_next(worker)
    assert (get_job(job_id).state, get_job(job_id).epoch) == ("succeeded", 1)


def test_at_its_deadline_a_job_saves_and_fails(
    db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf, with_trainer: WithTrainer
) -> None:
    job_id = make_job(recipe=recipe_of(100_000), max_runtime_s=6)
    run_next(with_trainer(stop_grace_s=30))
    job = get_job(job_id)
    assert (job.state, job.error_code) == ("failed", "deadline")
    with db.read() as session:
        saved = checkpoints.by_id(session, str(job.resume_checkpoint_id))
    assert saved is not None
    assert saved.step == job.last_step == job.error_step


@pytest.mark.parametrize("where", ["worker", "store"])
def test_a_full_disk_pauses_the_job_with_the_reason(
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    recipe_of: RecipeOf,
    with_trainer: WithTrainer,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    job_id = make_job(recipe=recipe_of(6 if where == "worker" else 100_000))
    worker = with_trainer("full" if where == "worker" else "normal")
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (0.0,))
    with monkeypatch.context() as patch:
        if where == "store":

            def publish(directory: Path, key: str, **kwargs: Any) -> None:
                raise StorageFull("no space left on the artifact store")

            patch.setattr(worker.store, "publish_directory", publish)
        run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.pause_code, job.attempts_left) == ("paused", "disk_full", 3)
    assert "Free space" in str(job.pause_message)
    assert events_of(db, job_id)[-1].level == "warn"
    with db.transaction() as session:
        job_rows.resume(session, DEFAULT_PROJECT, job_id)
    assert get_job(job_id).pause_code is None
