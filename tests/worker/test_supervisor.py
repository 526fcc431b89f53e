"""One attempt of a job, with real processes, databases and files; only the training itself is a stand-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import checkpoints, events, job_rows, jobs, metrics, samples
from jobs.tables import DEFAULT_PROJECT, Job
from worker.context import WorkerContext
from worker.process import session_members
from worker.supervisor import run_job

MakeJob = Callable[..., str]
GetJob = Callable[[str], Job]
WithTrainer = Callable[[str], WorkerContext]
RecipeOf = Callable[[int], dict[str, Any]]


def wait_for(check: Callable[[], bool], what: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def messages(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [event.message for event in events.since(session, job_id, 0, 1000)]


class InBackground:
    """`run_job` in a thread, as Celery runs it."""

    def __init__(self, context: WorkerContext, job_id: str) -> None:
        self._thread = threading.Thread(target=run_job, args=(context, job_id))
        self._thread.start()

    def wait(self, timeout: float = 30) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive()


def test_a_job_succeeds_and_everything_is_recorded(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob
) -> None:
    job_id = make_job()
    run_job(context, job_id)

    job = get_job(job_id)
    assert (job.state, job.last_step, job.error_code) == ("succeeded", 6, None)
    seen = messages(db, job_id)
    assert seen[0] == "Fine-tuning job started"
    assert "hello from the trainer" in seen
    assert [text for text in seen if text.startswith("Checkpoint")] == [
        f"Checkpoint created at step {n}" for n in (2, 4, 6)
    ]
    assert seen[-1] == "The job has successfully completed"
    assert any(text.startswith("Step 6/6 , train mean reward=1.00") for text in seen)
    with db.read() as session:
        assert len(metrics.series(session, job_id, names=["reward_mean"])) == 6
        assert len(samples.page(session, job_id, after=None, limit=100)) == 6
        rows = checkpoints.page(session, job_id, after=None, limit=10)
    assert [row.step for row in rows] == [6, 4, 2]
    stored = b"".join(context.store.read(f"{rows[0].key}/model.safetensors", 0, 4000))
    assert stored == (6).to_bytes(4, "big") * 1000
    assert not (context.settings.home / "work" / job_id).exists()


def test_a_second_doorbell_finds_nothing_to_do(context: WorkerContext, make_job: MakeJob, get_job: GetJob) -> None:
    job_id = make_job()
    run_job(context, job_id)
    run_job(context, job_id)
    assert get_job(job_id).epoch == 1


def test_a_killed_trainer_continues_from_its_last_checkpoint(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-once")
    run_job(worker, job_id)
    job = get_job(job_id)
    assert (job.state, job.attempts_left, job.resume_checkpoint_id is not None) == ("queued", 2, True)
    assert job.rung_at is not None
    assert "Training was interrupted: the trainer was killed by SIGKILL" in messages(db, job_id)[-1]

    run_job(worker, job_id)
    assert get_job(job_id).state == "succeeded"
    with db.read() as session:
        series = metrics.series(session, job_id, names=["reward_mean"])
    assert [(point.step, point.epoch) for point in series] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]


@pytest.mark.parametrize("step", [4, 6], ids=["stopped-early", "last-step"])
def test_a_worker_lost_after_the_final_checkpoint_has_finished_the_job(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, tmp_path: Path, step: int
) -> None:
    job_id = make_job()
    worker = with_trainer("3")  # a trainer would fail the job
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, "lost", 60)
    assert claim is not None
    assert not claim.trained
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    manifest = worker.store.publish_directory(tmp_path / "model", f"checkpoints/{job_id}/1/step-{step}")
    with db.transaction() as session:
        checkpoints.insert(session, job_id, 1, step, f"checkpoints/{job_id}/1/step-{step}", manifest, True, {})
        jobs.hand_back(session, job_id, 1, spend_attempt=True, error=JobError("worker_lost", "the worker was lost"))
    run_job(worker, job_id)
    job = get_job(job_id)
    assert (job.state, job.epoch, job.error_code) == ("succeeded", 2, None)
    assert messages(db, job_id)[-1] == "The job has successfully completed"


def test_a_trainer_that_always_dies_fails_the_job_with_its_last_words(
    db: Database, make_job: MakeJob, get_job: GetJob, set_job: Callable[..., None], with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-always")
    for _ in range(3):
        set_job(job_id, not_before=0.0)
        run_job(worker, job_id)
    job = get_job(job_id)
    assert (job.state, job.error_code) == ("failed", "trainer_crashed")
    assert job.error_message == "the trainer was killed by SIGKILL; no attempt is left"
    with db.read() as session:
        (last,) = events.page(session, job_id, before_seq=None, limit=1)
    assert last.level == "error"
    assert last.data == {"code": "trainer_crashed", "log_tail": "last words"}


def test_attempts_without_progress_wait_longer_each_time(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-always")
    run_job(worker, job_id)
    assert get_job(job_id).not_before <= time.time()
    run_job(worker, job_id)
    assert get_job(job_id).not_before > time.time() + 5
    assert get_job(job_id).rung_at is None  # the reconciler rings when its time has come


def test_a_bad_model_fails_at_once_in_the_trainers_words(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    run_job(with_trainer("3"), job_id)
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "bad_model", "m")
    assert job.error_message == "no such layer (step 1, rollout)"
    with db.read() as session:
        (last,) = events.page(session, job_id, before_seq=None, limit=1)
    assert last.data is not None
    assert last.data["log_tail"] == "about to fail"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "unheard-of"}, "bad_model", "no base model 'unheard-of'"),
        ({"training_file": "file-" + "0" * 32}, "invalid_file_format", "deleted before the job started"),
        ({"recipe": {"seed": 1, "method": {"type": "magic"}}}, "invalid_spec", "magic"),
    ],
)
def test_inputs_that_are_not_there_fail_the_job(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, change: dict[str, object], code: str, words: str
) -> None:
    job_id = make_job(**change)
    run_job(context, job_id)
    job = get_job(job_id)
    assert (job.state, job.error_code) == ("failed", code)
    assert words in str(job.error_message)


def test_a_damaged_training_file_is_no_fault_of_the_job(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    job_id = make_job()
    other = tmp_path / "other"
    other.write_bytes(b"x" * 49)
    context.store.put_file(other, f"files/{get_job(job_id).training_file}")
    run_job(context, job_id)
    assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 2)


@pytest.mark.parametrize("mode", ["no-final", "damaged"])
def test_without_a_stored_final_checkpoint_nothing_succeeds(
    make_job: MakeJob, get_job: GetJob, mode: str, monkeypatch: pytest.MonkeyPatch, with_trainer: WithTrainer
) -> None:
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (0.0,))
    job_id = make_job()
    run_job(with_trainer(mode), job_id)
    job = get_job(job_id)
    assert (job.state, job.final_checkpoint_id) == ("queued", None)


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
    monkeypatch.setattr("worker.supervisor._TERM_GRACE_S", 0.5)
    job_id = make_job(recipe=recipe_of(100_000))
    attempt = InBackground(with_trainer(mode), job_id)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    with db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, job_id)
    attempt.wait()
    assert get_job(job_id).state == "cancelled"


def test_pause_writes_a_checkpoint_and_resume_goes_on_from_it(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf
) -> None:
    job_id = make_job(recipe=recipe_of(40))
    worker = replace(context, settings=context.settings.model_copy(update={"stop_grace_s": 30}))
    attempt = InBackground(worker, job_id)
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
    run_job(worker, job_id)
    assert get_job(job_id).state == "succeeded"
    with db.read() as session:
        series = metrics.series(session, job_id, names=["reward_mean"])
    assert [point.step for point in series if point.epoch == 2] == list(range(saved.step + 1, 41))


def test_draining_hands_the_job_back_without_spending_an_attempt(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    worker = replace(context, settings=context.settings.model_copy(update={"stop_grace_s": 30}))
    attempt = InBackground(worker, job_id)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    worker.draining.set()
    attempt.wait()
    job = get_job(job_id)
    assert (job.state, job.attempts_left, job.resume_checkpoint_id is not None) == ("queued", 3, True)
    run_job(worker, job_id)
    assert get_job(job_id).epoch == 1, "a draining worker takes nothing"


def test_a_worker_that_lost_its_lease_kills_its_trainer_and_writes_nothing(
    context: WorkerContext,
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    recipe_of: RecipeOf,
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    attempt = InBackground(context, job_id)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    wait_for(lambda: reap_live_lease(db) == [job_id], "the reaping")
    wait_for(lambda: claim_for_another(db, job_id), "the other worker's claim")
    seen = messages(db, job_id)
    attempt.wait()
    job = get_job(job_id)
    assert (job.state, job.epoch, job.lease_owner) == ("running", 2, "another worker")
    assert messages(db, job_id) == seen


def test_without_the_database_the_trainer_is_dead_before_the_lease_ends(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf
) -> None:
    """The clock of the supervising thread alone does it: here the database hangs instead of failing."""
    job_id = make_job(recipe=recipe_of(100_000))
    settings = context.settings.model_copy(update={"self_fence_s": 1.5, "lease_s": 8})
    attempt = InBackground(replace(context, settings=settings), job_id)
    wait_for(lambda: get_job(job_id).last_step > 1, "a step")
    work, begin = context.settings.home / "work" / job_id, time.monotonic()
    with db.transaction() as session:  # holds the row (PostgreSQL) or the whole file (SQLite)
        jobs.hold(session, job_id, 1)
        wait_for(lambda: not trainers_of(work), "the trainer's end")
        assert time.monotonic() - begin < settings.lease_s
    attempt.wait()
    job = get_job(job_id)
    if job.state == "queued":  # a renewal that hung came through after all, so the job was still ours to hand back
        assert "out of touch with the database" in messages(db, job_id)[-1]
    else:  # until somebody reaps it
        assert (job.state, job.epoch) == ("running", 1)


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
                found += session_members(int(entry.name))
        except OSError:  # ended while we looked
            continue
    return found


def test_the_store_is_only_ever_given_keys_of_the_attempt(context: WorkerContext, make_job: MakeJob) -> None:
    job_id = make_job()
    run_job(context, job_id)
    root = Path(context.settings.artifacts_url.removeprefix("file://"))
    assert sorted(path.name for path in (root / "checkpoints" / job_id / "1").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]
