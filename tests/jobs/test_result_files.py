"""Result files: made once with the end of the job, written later, and right."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from jobs.artifacts import ArtifactStore, Manifest, sha256_of
from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import checkpoints, files, jobs, metrics
from jobs.repositories.jobs import Claim
from jobs.services import result_files, upkeep
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, File, Job

MakeRunning = Callable[..., Claim]
GetJob = Callable[[str], Job]
STEPS: list[tuple[int, str, dict[str, float]]] = [
    (0, "validation", {"loss": 2.5}),
    (1, "train", {"loss": 2.25, "token_probability": 0.125, "grad_norm": 1e-05}),
    (2, "train", {"loss": 2.0, "token_probability": 0.1}),
    (2, "validation", {"loss": 1.75}),
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", redis_url=SecretStr("redis://127.0.0.1:1/0"))


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


@pytest.fixture
def succeed(db: Database, make_running: MakeRunning, manifest: Manifest) -> Callable[..., str]:
    """Makes a job with these metrics that has succeeded; its id."""

    def make(steps: list[tuple[int, str, dict[str, float]]], method: str) -> str:
        claim = make_running(method={"type": method})
        with db.transaction() as session:
            for step, split, values in steps:
                assert metrics.upsert(session, claim.job_id, claim.epoch, step, split, values)
            checkpoints.insert(session, claim.job_id, claim.epoch, 20, "k", manifest, True, {})
            assert jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        return claim.job_id

    return make


def of(db: Database, job: Job) -> Mapping[str, File]:
    """Its files by name."""
    with db.read() as session:
        found = [files.get(session, DEFAULT_PROJECT, file_id) for file_id in job.result_files or []]
    return {file.filename: file for file in found if file is not None}


def content(store: ArtifactStore, file: File) -> str:
    return b"".join(store.read(file.key, 0, file.bytes)).decode()


def test_supervised_as_openai_has_it(
    db: Database, settings: Settings, store: ArtifactStore, succeed: Callable[..., str], get_job: GetJob
) -> None:
    job = get_job(succeed(STEPS, "supervised"))
    before = of(db, job)
    assert {file.purpose for file in before.values()} == {"fine-tune-results"}
    assert {(file.bytes, file.sha256) for file in before.values()} == {(0, "")}
    upkeep.tend(settings, db, store)
    written = of(db, job)
    assert content(store, written["step_metrics.csv"]) == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,train_grad_norm,train_token_probability\n"
        "0,,,2.5,,,\n"
        "1,2.25,,,,1e-05,0.125\n"
        "2,2.0,,1.75,,,0.1\n"
    )
    lines = content(store, written["metrics.jsonl"]).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "split": split, "values": values} for step, split, values in STEPS
    ]
    for file in written.values():
        path = settings.home / "artifacts" / file.key
        assert (file.bytes, file.sha256) == (path.stat().st_size, sha256_of(path))
    assert list(settings.scratch.iterdir()) == []


def test_reinforcement_reads_as_a_table(
    db: Database, settings: Settings, store: ArtifactStore, succeed: Callable[..., str], get_job: GetJob
) -> None:
    steps = [(step, "train", {"reward_mean": step / 3, "kl": 0.0}) for step in range(1, 3001)]
    steps += [(3000, "validation", {"sampled_reward_mean": 0.75})]
    job = get_job(succeed(steps, "reinforcement"))
    result_files.write_all(settings, db, store)
    table = pandas.read_csv(io.StringIO(content(store, of(db, job)["step_metrics.csv"])), index_col="step")
    assert list(table.columns) == ["train_kl", "train_reward_mean", "valid_sampled_reward_mean"]
    assert len(table) == 3000
    assert table["train_reward_mean"].tolist() == [step / 3 for step in range(1, 3001)]
    assert table["valid_sampled_reward_mean"].dropna().to_dict() == {3000: 0.75}


def test_no_metrics_at_all(
    db: Database, settings: Settings, store: ArtifactStore, succeed: Callable[..., str], get_job: GetJob
) -> None:
    job = get_job(succeed([], "dpo"))
    result_files.write_all(settings, db, store)
    written = of(db, job)
    assert content(store, written["step_metrics.csv"]) == "step\n"
    assert written["metrics.jsonl"].sha256, "an empty file is written, too"
    assert result_files.write_all(settings, db, store) == 0


def test_writers_at_the_same_time_write_the_same(
    db: Database, settings: Settings, store: ArtifactStore, succeed: Callable[..., str], get_job: GetJob
) -> None:
    job = get_job(succeed(STEPS, "reinforcement"))
    barrier = threading.Barrier(4)

    def write() -> None:
        barrier.wait(20)
        result_files.write_all(settings, db, store)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for file in of(db, job).values():
        assert sha256_of(settings.home / "artifacts" / file.key) == file.sha256


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
def test_only_success_has_results(db: Database, make_running: MakeRunning, get_job: GetJob, end: State) -> None:
    claim = make_running()
    with db.transaction() as session:
        if end == State.CANCELLED:
            jobs.move(session, claim.job_id, State.CANCELLING, jobs.Actor.API)
        error = JobError("oom", "No memory.") if end == State.FAILED else None
        assert jobs.finish(session, claim.job_id, claim.epoch, end, error=error)
        assert session.scalars(sa.select(File)).all() == []
    assert get_job(claim.job_id).result_files is None


def test_a_success_that_is_not_committed_has_none(
    db: Database, make_running: MakeRunning, manifest: Manifest, get_job: GetJob
) -> None:
    claim = make_running()
    with db.transaction() as session:
        checkpoints.insert(session, claim.job_id, claim.epoch, 20, "k", manifest, True, {})
        assert jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        session.rollback()
    with db.transaction() as session:
        assert session.scalars(sa.select(File)).all() == []
        checkpoints.insert(session, claim.job_id, claim.epoch, 20, "k", manifest, True, {})
        assert jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        assert not jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        assert len(session.scalars(sa.select(File)).all()) == 2


def test_a_deleted_one_stays_deleted(
    db: Database, settings: Settings, store: ArtifactStore, succeed: Callable[..., str], get_job: GetJob
) -> None:
    job = get_job(succeed(STEPS, "reinforcement"))
    gone = of(db, job)["metrics.jsonl"]
    with db.transaction() as session:
        files.delete(session, DEFAULT_PROJECT, gone.id)
    assert result_files.write(settings, db, store, gone) is None
    assert not list((settings.home / "artifacts").rglob(gone.id)), "nor are its bytes left behind"
    assert result_files.write_all(settings, db, store) == 1
    assert list(of(db, job)) == ["step_metrics.csv"]
