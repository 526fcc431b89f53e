"""Publishing checkpoints: order, outages, full stores, damage on the way, replayed steps, retention."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgpo.records import CheckpointRecord
from jobs.artifacts import Manifest, StorageError, StorageFull
from jobs.db import Database
from jobs.repositories import checkpoints, jobs
from jobs.repositories.jobs import Claim
from jobs.tables import Checkpoint, Job
from worker.context import WorkerContext
from worker.uploader import Uploader

MakeJob = Callable[..., str]
SetJob = Callable[..., None]
Save = Callable[..., tuple[CheckpointRecord, Path]]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (0.0, 0.0))


@pytest.fixture
def claim(db: Database, context: WorkerContext, make_job: MakeJob) -> Claim:
    """A running job that keeps the last two."""
    recipe = {"seed": 1, "checkpointing": {"keep_last": 2}}
    job_id = make_job(recipe=recipe, request={"model": "tiny"})
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, "worker", 60)
    assert claim is not None
    return claim


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a checkpoint as a trainer does; content differs by step and `content`."""

    def write(step: int, *, final: bool = False, best: bool = False, content: str = "") -> Any:
        folder = tmp_path / "output" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(f"{step} {content}".encode())
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        files = [{"path": "model.safetensors", "bytes": 9, "sha256": digest, "kind": "weights"}]
        (folder / "manifest.json").write_text(json.dumps({"step": step, "files": files}))
        record = CheckpointRecord(
            type="checkpoint", seq=1, time=time.time(), step=step, path=str(folder), final=final, metrics={}, best=best
        )
        return record, folder

    return write


def publish(uploader: Uploader, *saved: tuple[CheckpointRecord, Path]) -> None:
    """Hand the uploader these, and wait until it is done."""
    for record, folder in saved:
        uploader.put(record, folder)
    uploader.close()
    uploader.start()
    uploader.join(60)
    assert not uploader.is_alive()
    assert not any(folder.exists() for _, folder in saved), "local folders go, come what may"


def rows(db: Database, claim: Claim) -> dict[int, Checkpoint]:
    with db.read() as session:
        return {row.step: row for row in checkpoints.page(session, claim.job_id, after=None, limit=99)}


def folders(context: WorkerContext) -> set[str]:
    return {found.key.rpartition("/")[0] for found in context.store.walk("checkpoints")}


def uploader_of(context: WorkerContext, claim: Claim) -> Uploader:
    return Uploader(context.database, context.store, claim.job_id, claim.epoch)


def test_publishes_in_order_and_keeps_what_the_recipe_says(
    context: WorkerContext, db: Database, claim: Claim, save: Save
) -> None:
    uploader = uploader_of(context, claim)
    publish(uploader, *(save(step, best=step == 2, final=step == 6) for step in range(1, 7)))
    assert (uploader.published, uploader.final_published, uploader.failure) == (6, True, None)
    found = rows(db, claim)
    assert found.keys() == {2, 5, 6}
    assert found[2].best
    assert folders(context) == {row.key for row in found.values()}


def test_a_store_that_comes_back_gets_everything(
    context: WorkerContext, db: Database, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = context.store._storage.put, iter(range(99))

    def fail_twice(source: Path, key: str) -> None:
        if next(calls) in (1, 2):
            raise StorageError("away")
        put(source, key)

    monkeypatch.setattr(context.store._storage, "put", fail_twice)
    uploader = uploader_of(context, claim)
    publish(uploader, save(2, final=True))
    assert (uploader.published, uploader.final_published, uploader.failure) == (1, True, None)
    assert rows(db, claim).keys() == {2}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("away"), "storage_unavailable"),
        (StorageFull("full"), "disk_full"),
        (ValueError("something else"), "server_error"),
    ],
)
def test_what_cannot_be_stored_is_said(
    context: WorkerContext,
    db: Database,
    claim: Claim,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: str,
) -> None:
    def fail(source: Path, key: str) -> None:
        raise error

    monkeypatch.setattr(context.store._storage, "put", fail)
    uploader = uploader_of(context, claim)
    publish(uploader, save(4, final=True))
    assert uploader.failure is not None
    assert (uploader.failure.code, uploader.failure.step, uploader.failure.phase) == (code, 4, "checkpointing")
    assert "step 4 could not be stored" in uploader.failure.message
    assert (uploader.published, uploader.final_published) == (0, False)
    assert rows(db, claim) == {}


def test_a_newer_checkpoint_takes_the_place_of_one_that_fails(
    context: WorkerContext, db: Database, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, tried = context.store._storage.put, []

    def fail(source: Path, key: str) -> None:
        tried.append(key)
        if "step-000002" in key:
            raise StorageError("away")
        put(source, key)

    monkeypatch.setattr(context.store._storage, "put", fail)
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (600.0,))
    uploader = uploader_of(context, claim)
    publish(uploader, save(2), save(4))
    assert len([key for key in tried if "step-000002" in key]) == 1
    assert (rows(db, claim).keys(), uploader.failure) == ({4}, None)


def test_a_final_checkpoint_that_the_store_altered_is_stored_again(
    context: WorkerContext, db: Database, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Same size, other bytes: seen by reading back, and only then is there a row."""
    put, altered = context.store._storage.put, []
    (tmp_path / "altered").write_bytes(b"?" * len(b"4 "))

    def alter_once(source: Path, key: str) -> None:
        if key.endswith(".safetensors") and not altered:
            altered.append(rows(db, claim))
            put(tmp_path / "altered", key)
        else:
            put(source, key)

    monkeypatch.setattr(context.store._storage, "put", alter_once)
    publish(uploader_of(context, claim), save(4, final=True))
    assert altered == [{}]
    row = rows(db, claim)[4]
    context.store.fetch_directory(row.key, Manifest.from_json(row.manifest), tmp_path / "copy")


def test_a_replayed_step_keeps_its_id_and_gets_the_new_files(
    context: WorkerContext, db: Database, claim: Claim, save: Save, set_job: SetJob, tmp_path: Path
) -> None:
    publish(uploader_of(context, claim), save(2, content="old"))
    old = rows(db, claim)[2]
    with db.transaction() as session:
        checkpoints.mark_damaged(session, old.id)
        session.get_one(Checkpoint, old.id).pinned = True
    set_job(claim.job_id, epoch=2)
    publish(Uploader(context.database, context.store, claim.job_id, 2), save(2, content="new"))
    new = rows(db, claim)[2]
    assert (new.id, new.name, new.epoch, new.pinned, new.damaged) == (old.id, old.name, 2, True, False)
    assert folders(context) == {new.key} != {old.key}
    context.store.fetch_directory(new.key, Manifest.from_json(new.manifest), tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == b"2 new"


def test_the_same_step_twice_in_one_attempt_overwrites_nothing(
    context: WorkerContext, db: Database, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of the first may be under way: its files stay as they are until the row points to the others."""
    seen: list[bytes] = []
    put = context.store._storage.put
    first = f"checkpoints/{claim.job_id}/1/step-000002/model.safetensors"

    def watch(source: Path, key: str) -> None:
        put(source, key)
        seen.append(b"".join(context.store.read(first, 0, 5)))

    record, folder = save(2, content="one")
    second = folder.with_name("second")
    folder.rename(second)
    other = save(2, content="two")
    monkeypatch.setattr(context.store._storage, "put", watch)
    publish(uploader_of(context, claim), (record, second), other)
    assert set(seen[1:]) == {b"2 one"}
    row = rows(db, claim)[2]
    assert b"".join(context.store.read(f"{row.key}/model.safetensors", 0, 5)) == b"2 two"
    assert folders(context) == {row.key}


def test_a_worker_that_lost_the_job_publishes_nothing(
    context: WorkerContext, db: Database, claim: Claim, save: Save, set_job: SetJob
) -> None:
    set_job(claim.job_id, epoch=2)
    uploader = uploader_of(context, claim)
    publish(uploader, save(2))
    assert (uploader.published, uploader.failure, rows(db, claim)) == (0, None, {})
    with db.read() as session:
        assert session.get_one(Job, claim.job_id).resume_checkpoint_id is None


def test_retention_that_fails_fails_nothing_else(
    context: WorkerContext, db: Database, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> int:
        raise StorageError("away")

    monkeypatch.setattr("jobs.services.retention.apply", fail)
    uploader = uploader_of(context, claim)
    publish(uploader, *(save(step) for step in (1, 2, 3)))
    assert (uploader.published, uploader.failure) == (3, None)


def test_an_abandoned_uploader_ends_its_waits(
    context: WorkerContext, claim: Claim, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def fail(source: Path, key: str) -> None:
        tried.set()
        raise StorageError("away")

    monkeypatch.setattr(context.store._storage, "put", fail)
    monkeypatch.setattr("worker.uploader._RETRY_AFTER_S", (600.0,))
    uploader = uploader_of(context, claim)
    uploader.put(*save(2))
    uploader.start()
    assert tried.wait(30)
    uploader.abandon()
    uploader.join(30)
    assert not uploader.is_alive()
