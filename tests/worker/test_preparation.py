"""Making an attempt ready: inputs that are gone or altered, checkpoints likewise, stores that fail, disks too small."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import StorageError
from jobs.db import Database
from jobs.ids import CHECKPOINT, new_id
from jobs.repositories import checkpoints
from jobs.repositories.claims import claim_next
from jobs.tables import Checkpoint
from tests.worker.helpers import (
    GetJob,
    InBackground,
    MakeJob,
    RecipeOf,
    SetJob,
    WithTrainer,
    attempts_of,
    events_of,
    messages,
    wait_for,
)
from worker.answering import run_next
from worker.context import WorkerContext
from worker.preparation import Preparation
from worker.workdir import WorkDir


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "unheard-of"}, "bad_model", "no base model 'unheard-of'"),
        ({"training_file": "file-" + "0" * 32}, "dataset_error", "deleted before the job started"),
        ({"recipe": {"seed": 1, "method": {"type": "magic"}}}, "invalid_spec", "magic"),
    ],
)
def test_inputs_that_are_not_there_fail_the_job(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, change: dict[str, object], code: str, words: str
) -> None:
    job_id = make_job(**change)
    run_next(context)
    job = get_job(job_id)
    assert (job.state, job.error_code) == ("failed", code)
    assert words in str(job.error_message)


@pytest.mark.parametrize("how", ["missing", "altered", "short"])
def test_a_training_file_that_is_gone_or_altered_fails_the_job(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, tmp_path: Path, how: str
) -> None:
    job_id = make_job()
    key = f"files/{get_job(job_id).training_file}"
    damage(context, key, how, tmp_path)
    run_next(context)
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "dataset_error", "training_file")


def damage(context: WorkerContext, key: str, how: str, tmp_path: Path) -> None:
    """Alter a stored object as disks and people do."""
    stored = Path(context.settings.artifacts_url.removeprefix("file://"), key)
    content = stored.read_bytes()
    if how == "missing":
        stored.unlink()
    else:
        stored.write_bytes(b"?" * len(content) if how == "altered" else content[:-1])
    (stored.parent / "something-else").touch()  # a store without anything is an outage


@pytest.fixture
def half_done(db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf, with_trainer: WithTrainer) -> str:
    """A job with checkpoints of the steps 2, 4, ... whose worker was drained."""
    job_id = make_job(recipe=recipe_of(100_000))
    worker = with_trainer(stop_grace_s=30)
    attempt = InBackground(worker)
    wait_for(lambda: len(steps_of(db, job_id)) > 2, "three checkpoints")
    worker.draining.set()
    attempt.wait()
    worker.draining.clear()
    assert get_job(job_id).state == "queued"
    return job_id


def steps_of(db: Database, job_id: str) -> dict[int, Checkpoint]:
    with db.read() as session:
        return {row.step: row for row in checkpoints.page(session, job_id, after=None, limit=1000)}


@pytest.mark.parametrize(
    ("name", "how"), [("manifest.json", "short"), ("model.safetensors", "altered"), ("model.safetensors", "missing")]
)
def test_the_next_older_checkpoint_takes_the_place_of_a_damaged_one(
    db: Database,
    half_done: str,
    get_job: GetJob,
    set_job: SetJob,
    recipe_of: RecipeOf,
    with_trainer: WithTrainer,
    tmp_path: Path,
    name: str,
    how: str,
) -> None:
    rows = steps_of(db, half_done)
    older, newest = sorted(rows)[-2:]
    worker = with_trainer()
    damage(worker, f"{rows[newest].key}/{name}", how, tmp_path)
    set_job(half_done, recipe=recipe_of(newest + 2))
    run_next(worker)
    assert get_job(half_done).state == "succeeded"
    assert attempts_of(db, half_done)[-1].resumed_step == older
    warned = [event.message for event in events_of(db, half_done) if event.level == "warn"]
    assert len(warned) == 1
    assert f"checkpoint of step {newest} is damaged" in warned[0]
    assert f"going on from the checkpoint of step {older}" in warned[0]


def test_without_any_good_checkpoint_the_base_model_is_where_it_goes_on_from(
    db: Database,
    half_done: str,
    get_job: GetJob,
    set_job: SetJob,
    recipe_of: RecipeOf,
    with_trainer: WithTrainer,
    tmp_path: Path,
) -> None:
    worker = with_trainer()
    for row in steps_of(db, half_done).values():
        damage(worker, f"{row.key}/model.safetensors", "missing", tmp_path)
    set_job(half_done, recipe=recipe_of(6))
    run_next(worker)
    assert get_job(half_done).state == "succeeded"
    assert attempts_of(db, half_done)[-1].resumed_step is None
    assert any("going on from the base model" in text for text in messages(db, half_done))


def test_a_store_that_does_not_answer_damages_nothing(
    db: Database,
    half_done: str,
    get_job: GetJob,
    set_job: SetJob,
    recipe_of: RecipeOf,
    with_trainer: WithTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.preparation._STORE_RETRIES_S", (0.0, 0.0))
    worker = with_trainer()
    newest = max(steps_of(db, half_done))
    set_job(half_done, recipe=recipe_of(newest + 2))
    with monkeypatch.context() as patch:
        tries = 0

        def fetch(*args: Any) -> None:
            nonlocal tries
            tries += 1
            raise StorageError("the artifact store could not be reached")

        patch.setattr(worker.store, "fetch_directory", fetch)
        run_next(worker)
    job = get_job(half_done)
    assert (job.state, job.attempts_left, tries) == ("queued", 2, 3)
    assert attempts_of(db, half_done)[-1].error_code == "storage_unavailable"
    assert job.not_before > time.time() + 10
    assert not any(row.damaged for row in steps_of(db, half_done).values())
    set_job(half_done, not_before=0.0)
    run_next(worker)
    assert attempts_of(db, half_done)[-1].resumed_step == newest


def test_a_store_that_hangs_keeps_nobody_from_draining(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()
    worker = with_trainer()
    hanging, released = threading.Event(), threading.Event()

    def fetch(*args: Any, **kwargs: Any) -> None:
        hanging.set()
        released.wait(60)

    monkeypatch.setattr(worker.store, "fetch_file", fetch)
    attempt = InBackground(worker)
    try:
        assert hanging.wait(20)
        worker.draining.set()
        attempt.wait(20)
        assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 3)
    finally:
        released.set()


def test_a_job_that_does_not_fit_the_disk_is_paused_before_it_starts(
    make_job: MakeJob, get_job: GetJob, with_trainer: WithTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job_id = make_job()
    worker = with_trainer("3")  # a trainer would fail the job
    monkeypatch.setattr("worker.preparation.disk.model_size", lambda folder: (1 << 60, "float32"))
    run_next(worker)
    job = get_job(job_id)
    assert (job.state, job.pause_code, job.attempts_left) == ("paused", "disk_full", 3)
    needed = 2 * 3 * (1 << 60)
    assert f"needs {needed + 50} bytes" in str(job.pause_message)
    assert "under <home>" in str(job.pause_message)
    assert str(tmp_path) not in str(job.pause_message)


@pytest.fixture
def start_from(db: Database, context: WorkerContext, make_job: MakeJob, tmp_path: Path) -> Any:
    """Stores a checkpoint of another job, made of these files, and returns it."""

    def make(**files: bytes) -> Checkpoint:
        folder = tmp_path / "start"
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        job_id = make_job(state="succeeded")
        key = f"checkpoints/{job_id}/1/step-000006"
        manifest = context.store.publish_directory(folder, key)
        with db.transaction() as session:
            session.add(
                Checkpoint(
                    id=new_id(CHECKPOINT),
                    job_id=job_id,
                    epoch=1,
                    step=6,
                    created_at=1.0,
                    name=f"ft:{job_id}:ckpt-step-6",
                    key=key,
                    manifest=manifest.as_json(),
                    manifest_sha256=manifest.sha256,
                    bytes=manifest.bytes,
                    final=True,
                    metrics={},
                )
            )
        with db.read() as session:
            (row,) = checkpoints.page(session, job_id, after=None, limit=1)
            return row

    return make


WHOLE = {
    "config_DOT_json": b"{}",
    "model_DOT_safetensors": b"weights",
    "adapter__adapter_model_DOT_safetensors": b"adapter",
    "trainer_state__state_DOT_json": b"{}",
}


def prepared(context: WorkerContext, db: Database) -> tuple[dict[str, Any], Path]:
    """The run specification of the next job's attempt, and its folder."""
    with db.transaction() as session:
        claim = claim_next(session, context.slot, 60)
    assert claim is not None
    workdir = WorkDir(context.settings, claim)
    preparation = Preparation(context, claim, workdir)
    preparation.start()
    preparation.join(60)
    assert preparation.result() is None
    return json.loads(workdir.spec.read_text()), workdir.path


def test_a_job_starts_from_the_weights_of_a_checkpoint(
    db: Database, context: WorkerContext, make_job: MakeJob, start_from: Any
) -> None:
    start = start_from(**WHOLE)
    make_job(model=start.name, base_model="tiny", start_checkpoint_id=start.id)
    spec, folder = prepared(context, db)
    assert (spec["model"], spec["adapter_base"]) == (str(folder / "start"), None)
    found = {path.relative_to(folder / "start").as_posix() for path in (folder / "start").rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors"}


def test_an_adapter_alone_is_started_from_with_its_base_model(
    db: Database, context: WorkerContext, make_job: MakeJob, start_from: Any
) -> None:
    start = start_from(**{name: content for name, content in WHOLE.items() if not name.startswith("model")})
    make_job(model=start.name, base_model="tiny", start_checkpoint_id=start.id)
    spec, folder = prepared(context, db)
    assert spec["adapter_base"] == str(context.settings.model_root / "tiny")
    assert (folder / "start" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("how", ["missing", "altered", "deleted"])
def test_a_job_whose_start_is_damaged_or_gone_fails(
    db: Database, context: WorkerContext, make_job: MakeJob, get_job: GetJob, start_from: Any, tmp_path: Path, how: str
) -> None:
    start = start_from(**WHOLE)
    job_id = make_job(model=start.name, base_model="tiny", start_checkpoint_id=start.id)
    if how == "deleted":
        with db.transaction() as session:
            checkpoints.remove(session, [start.id])
    else:
        damage(context, f"{start.key}/model.safetensors", how, tmp_path)
    run_next(context)
    job = get_job(job_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "bad_model", "model")
    assert ("was deleted" if how == "deleted" else "is damaged") in str(job.error_message)
    with db.read() as session:
        found = checkpoints.by_id(session, start.id)
        assert (found is None) if how == "deleted" else (found is not None and found.damaged)


def test_the_disk_must_have_room_for_the_start(
    context: WorkerContext, make_job: MakeJob, get_job: GetJob, start_from: Any, db: Database
) -> None:
    start = start_from(**WHOLE)
    job_id = make_job(model=start.name, base_model="tiny", start_checkpoint_id=start.id)
    huge = [dict(file, bytes=1 << 60) for file in start.manifest]
    with db.transaction() as session:
        session.get_one(Checkpoint, start.id).manifest = huge
    run_next(context)
    assert (get_job(job_id).state, get_job(job_id).pause_code) == ("paused", "disk_full")
