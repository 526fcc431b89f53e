"""One attempt, from claim to end, with real processes, databases and files; only the training itself is a stand-in."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import checkpoints, jobs, logs, metrics, samples
from tests.worker.helpers import GetJob, MakeJob, SetJob, WithTrainer, attempts_of, events_of, messages
from worker.answering import run_next
from worker.context import WorkerContext


def test_a_job_succeeds_and_everything_is_recorded(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob
) -> None:
    job_id = make_job()
    run_next(context)

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
    (attempt,) = attempts_of(db, job_id)
    assert (attempt.outcome, attempt.resumed_step, attempt.devices) == ("succeeded", None, list(context.slot.devices))
    assert attempt.pid is not None


def test_a_second_doorbell_finds_nothing_to_do(context: WorkerContext, make_job: MakeJob, get_job: GetJob) -> None:
    job_id = make_job()
    run_next(context)
    run_next(context)
    assert get_job(job_id).epoch == 1


def test_a_killed_trainer_continues_from_its_last_checkpoint(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-once")
    run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.attempts_left, job.resume_checkpoint_id is not None) == ("queued", 2, True)
    assert job.rung_at is not None
    assert "Training was interrupted: the trainer was killed by SIGKILL" in messages(db, job_id)[-1]

    run_next(worker)
    assert get_job(job_id).state == "succeeded"
    with db.read() as session:
        series = metrics.series(session, job_id, names=["reward_mean"])
    assert [(point.step, point.epoch) for point in series] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]
    assert [row.resumed_step for row in attempts_of(db, job_id)] == [None, 2]
    told = [event.data["step"] for event in events_of(db, job_id) if event.type == "metrics" and event.data]
    assert told == [1, 2, 3, 4, 5, 6], "the step that was repeated is told once"


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
    run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.epoch, job.error_code) == ("succeeded", 2, None)
    assert messages(db, job_id)[-1] == "The job has successfully completed"


def test_a_trainer_that_always_dies_fails_the_job_with_its_last_words(
    db: Database, make_job: MakeJob, get_job: GetJob, set_job: SetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-always")
    for _ in range(3):
        set_job(job_id, not_before=0.0)
        run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.error_code) == ("failed", "trainer_crashed")
    assert str(job.error_message).startswith("the trainer was killed by SIGKILL from outside")
    assert "no attempt is left" in str(job.error_message)
    last = events_of(db, job_id)[-1]
    assert (last.level, job.error_log) == ("error", "last words")
    assert last.data is not None
    assert (last.data["code"], last.data["log_tail"]) == ("trainer_crashed", "last words")
    assert [row.signal for row in attempts_of(db, job_id)] == [9, 9, 9]


def test_attempts_without_progress_wait_longer_each_time(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("killed-always")
    run_next(worker)
    assert get_job(job_id).not_before <= time.time()
    run_next(worker)
    assert get_job(job_id).not_before > time.time() + 5
    assert get_job(job_id).rung_at is None  # the reconciler rings when its time has come


def test_a_bad_model_fails_at_once_in_the_trainers_words(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    run_next(with_trainer("3"))
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "bad_model", "m")
    assert str(job.error_message).startswith("no such layer (step 1, rollout). ")
    assert (job.error_phase, job.error_step, job.error_log) == ("rollout", 1, "about to fail")


@pytest.mark.parametrize("mode", ["no-final", "damaged"])
def test_without_a_stored_final_checkpoint_nothing_succeeds(
    make_job: MakeJob, get_job: GetJob, mode: str, monkeypatch: pytest.MonkeyPatch, with_trainer: WithTrainer
) -> None:
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (0.0,))
    job_id = make_job()
    run_next(with_trainer(mode))
    job = get_job(job_id)
    assert (job.state, job.final_checkpoint_id) == ("queued", None)


def test_the_store_is_only_ever_given_keys_of_the_attempt(context: WorkerContext, make_job: MakeJob) -> None:
    job_id = make_job()
    run_next(context)
    root = Path(context.settings.artifacts_url.removeprefix("file://"))
    assert sorted(path.name for path in (root / "checkpoints" / job_id / "1").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]


def test_a_second_failure_for_memory_at_one_step_ends_the_job(
    db: Database, make_job: MakeJob, get_job: GetJob, set_job: SetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    worker = with_trainer("oom")
    run_next(worker)
    assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 2)
    set_job(job_id, not_before=0.0)
    run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_step) == ("failed", "oom", 3)
    assert "second time" in str(job.error_message)
    assert [row.error_code for row in attempts_of(db, job_id)] == ["oom", "oom"]


def test_a_launcher_does_not_hide_why_its_trainer_ended(
    db: Database, make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer
) -> None:
    job_id = make_job()
    run_next(with_trainer("hidden"))
    assert (get_job(job_id).state, get_job(job_id).error_code) == ("failed", "nan")
    assert [row.exit_code for row in attempts_of(db, job_id)] == [6]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("mode", "state", "code", "status"), [("normal", "succeeded", None, 0), ("6", "failed", "bad_model", 6)]
)
def test_a_job_on_several_accelerators_runs_under_a_launcher(
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    with_trainer: WithTrainer,
    mode: str,
    state: str,
    code: str | None,
    status: int,
) -> None:
    job_id = make_job(gpus=2)
    worker = with_trainer(mode)
    run_next(replace(worker, slot=replace(worker.slot, devices=("cpu", "cpu"))))
    (attempt,) = attempts_of(db, job_id)
    assert (get_job(job_id).state, get_job(job_id).error_code) == (state, code), get_job(job_id).error_log
    assert (attempt.exit_code, attempt.devices) == (status, ["cpu", "cpu"])


def test_users_are_not_shown_the_workers_folders(
    db: Database, make_job: MakeJob, get_job: GetJob, set_job: SetJob, with_trainer: WithTrainer, tmp_path: Path
) -> None:
    job_id = make_job(attempts_left=1)
    run_next(with_trainer("talkative"))
    job = get_job(job_id)
    assert "looking at <work>/output" in messages(db, job_id)
    assert "cannot read <models>/tiny" in str(job.error_message)
    assert "reading <models>/tiny/config.json and <work>/data/" in str(job.error_log)
    with db.read() as session:
        printed = [line.text for line in logs.page(session, job_id, limit=100)]
    assert any(line.startswith("reading <models>/tiny/config.json and <work>/data/") for line in printed)
    shown = [str(job.error_message), str(job.error_log), *(f"{e.message} {e.data}" for e in events_of(db, job_id))]
    shown += printed
    assert str(tmp_path) not in " ".join(shown)


def test_a_database_that_was_away_at_the_end_hears_the_outcome_when_it_is_back(
    context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()
    real, failures = jobs.finish, 3

    def finish(*args: Any, **kwargs: Any) -> bool:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OperationalError("UPDATE", {}, Exception("server closed the connection unexpectedly"))
        return real(*args, **kwargs)

    monkeypatch.setattr("worker.supervisor._SETTLE_RETRY_S", 0.01)
    monkeypatch.setattr("worker.supervisor.jobs.finish", finish)
    run_next(context)
    assert (get_job(job_id).state, failures) == ("succeeded", -1)


def test_a_worker_without_its_database_takes_nothing_and_lives(context: WorkerContext, make_job: MakeJob) -> None:
    make_job()
    away = replace(context, database=Database("postgresql://bgpo@127.0.0.1:1/bgpo"))
    assert run_next(away) is False
    assert run_next(context) is True
