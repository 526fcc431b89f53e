"""What the sweeper removes, and above all what it leaves alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.artifacts import ArtifactStore, Manifest
from jobs.db import Database
from jobs.ids import EVALUATION, EXPORT, FILE, JOB, new_id
from jobs.repositories import checkpoints, files
from jobs.repositories.jobs import Claim
from jobs.services import sweep as service
from jobs.services.sweep import sweep
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT
from tests.s3 import S3Server

DAY = 86_400.0
MakeRunning = Callable[..., Claim]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "home", redis_url=SecretStr("redis://127.0.0.1:1/0"))
    made.scratch.mkdir(parents=True)
    return made


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.home / "artifacts"


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return ArtifactStore(settings.artifacts_url)


def put(folder: Path, key: str, *, age: float = 2 * DAY) -> str:
    """A stored object of that age."""
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    return key


def stored(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"clock"}


def record_file(db: Database, key: str) -> None:
    with db.transaction() as session:
        files.insert(
            session,
            DEFAULT_PROJECT,
            id=key.removeprefix("files/"),
            filename="f",
            purpose="batch",
            bytes=1,
            sha256="0" * 64,
            key=key,
            summary=None,
        )


def record_checkpoint(db: Database, claim: Claim, step: int, key: str, manifest: Manifest) -> None:
    with db.transaction() as session:
        assert checkpoints.insert(session, claim.job_id, claim.epoch, step, key, manifest, False, {})


def test_files_without_a_row_go_when_they_are_old(
    settings: Settings, db: Database, store: ArtifactStore, folder: Path
) -> None:
    keys = [f"files/{new_id(FILE)}" for _ in range(3)]
    orphan, kept, young = put(folder, keys[0]), put(folder, keys[1]), put(folder, keys[2], age=DAY / 2)
    record_file(db, kept)
    strange = {put(folder, "files/notes.txt"), put(folder, f"files/sub/{new_id(FILE)}"), put(folder, "README")}
    assert sweep(settings, db, store) == 1
    assert stored(folder) == {kept, young} | strange
    assert orphan not in stored(folder)
    assert sweep(settings, db, store) == 0


def test_checkpoint_folders_without_a_row_go_when_they_are_old(
    settings: Settings,
    db: Database,
    store: ArtifactStore,
    folder: Path,
    make_running: MakeRunning,
    manifest: Manifest,
    set_job: Callable[..., None],
) -> None:
    claim = make_running()
    base = f"checkpoints/{claim.job_id}/1"
    row = put(folder, f"{base}/step-000002/model")
    record_checkpoint(db, claim, 2, f"{base}/step-000002", manifest)
    publishing = {put(folder, f"{base}/step-000004/model"), put(folder, f"{base}/step-000004/deep/x")}
    earlier = put(folder, f"checkpoints/{new_id(JOB)}/1/step-000002/model")  # no such job
    begun = {
        put(folder, f"checkpoints/{new_id(JOB)}/2/step-000002/old"),
    }
    half = next(iter(begun)).replace("old", "young")
    begun.add(put(folder, half, age=60))  # one young object keeps its folder
    strange = {put(folder, "checkpoints/readme"), put(folder, f"checkpoints/{claim.job_id}/x/y/z")}
    assert sweep(settings, db, store) == 1
    assert stored(folder) == {row} | publishing | begun | strange
    assert earlier not in stored(folder)
    set_job(claim.job_id, state=State.QUEUED)  # handed back: epoch 1 never publishes again
    assert sweep(settings, db, store) == 1
    assert stored(folder) == {row} | begun | strange
    set_job(claim.job_id, state=State.RUNNING, epoch=2)
    later = put(folder, f"checkpoints/{claim.job_id}/2/step-000004/model")
    gone = put(folder, f"{base}/step-000006/model")
    assert sweep(settings, db, store) == 1
    assert later in stored(folder)
    assert gone not in stored(folder)
    assert not (folder / base / "step-000006").exists(), "its folder goes as well"


def test_half_written_files_go_when_they_are_old(
    settings: Settings,
    db: Database,
    store: ArtifactStore,
    folder: Path,
    make_running: MakeRunning,
    manifest: Manifest,
    set_job: Callable[..., None],
) -> None:
    claim = make_running()
    key = f"checkpoints/{claim.job_id}/1/step-000002"
    kept = {
        put(folder, f"{key}/model"),
        put(folder, f"{key}/deep.tmp"),
        put(folder, f"{key}/young.0a1b2c3d.tmp", age=9),
    }
    record_checkpoint(db, claim, 2, key, manifest)
    unfinished = put(folder, f"{key}/model.0123abcd.tmp")
    put(folder, f"files/{new_id(FILE)}.0123abcd.tmp")
    assert sweep(settings, db, store) == 1
    assert stored(folder) == kept | {unfinished}, "its attempt still runs"
    set_job(claim.job_id, state=State.QUEUED)
    assert sweep(settings, db, store) == 1
    assert stored(folder) == kept


def test_uploads_that_were_being_received_go_when_they_are_old(
    settings: Settings, db: Database, store: ArtifactStore
) -> None:
    put(settings.scratch, "upload-1")
    put(settings.scratch, "upload-2", age=60)
    assert sweep(settings, db, store) == 1
    assert stored(settings.scratch) == {"upload-2"}


def test_many_orphans(settings: Settings, db: Database, store: ArtifactStore, folder: Path) -> None:
    """More than one question to the database."""
    keys = [put(folder, f"files/{new_id(FILE)}") for _ in range(service._BATCH + 3)]
    record_file(db, keys[7])
    record_file(db, keys[-1])
    assert sweep(settings, db, store) == len(keys) - 2
    assert stored(folder) == {keys[7], keys[-1]}


def test_a_row_written_while_the_sweep_runs_is_seen(
    settings: Settings,
    db: Database,
    store: ArtifactStore,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the first question and the deletion."""
    late, orphan = (put(folder, f"files/{new_id(FILE)}") for _ in range(2))
    asked: list[list[str]] = []
    known = service._known_files

    def ask(database: Database, keys: list[str]) -> set[str]:
        found = known(database, keys)
        if not asked:
            record_file(db, late)
        asked.append(keys)
        return found

    monkeypatch.setattr(service, "_known_files", ask)
    assert sweep(settings, db, store) == 1
    assert stored(folder) == {late}
    assert orphan not in stored(folder)


def test_publishing_and_sweeping_at_once_lose_nothing(
    settings: Settings,
    db: Database,
    store: ArtifactStore,
    folder: Path,
    make_running: MakeRunning,
    tmp_path: Path,
) -> None:
    """Everything counts as old; still no folder goes whose row comes."""
    eager = settings.model_copy(update={"orphan_age_s": 1e-9})
    claim, failures, done = make_running(), [], threading.Event()
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "model").write_bytes(b"x" * 10_000)

    def sweeping() -> None:
        try:
            while not done.is_set():
                sweep(eager, db, store)
        except Exception as error:  # reported below
            failures.append(error)

    thread = threading.Thread(target=sweeping)
    thread.start()
    try:
        for step in range(40):
            key = f"checkpoints/{claim.job_id}/1/step-{step:06d}"
            record_checkpoint(db, claim, step, key, store.publish_directory(tmp_path / "step", key))
    finally:
        done.set()
        thread.join(60)
    assert failures == []
    assert stored(folder) == {f"checkpoints/{claim.job_id}/1/step-{step:06d}/model" for step in range(40)}


def test_an_empty_store_is_left_alone(settings: Settings, db: Database, store: ArtifactStore, folder: Path) -> None:
    assert sweep(settings, db, store) == 0
    assert not folder.exists()


def test_sweeping_s3(
    settings: Settings, db: Database, tmp_path: Path, make_running: MakeRunning, manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server = S3Server(tmp_path)
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = ArtifactStore(f"s3://{server.bucket('sweep')}/p")
        claim = make_running()
        (tmp_path / "x").write_bytes(b"x")
        names: dict[str, Any] = {
            "file": f"files/{new_id(FILE)}",
            "checkpoint": f"checkpoints/{claim.job_id}/1/step-000002/model",
            "publishing": f"checkpoints/{claim.job_id}/1/step-000004/model",
            "orphan": f"checkpoints/{new_id(JOB)}/1/step-000002/model",
            "upload": f"files/{new_id(FILE)}",
        }
        for key in names.values():
            store.put_file(tmp_path / "x", key)
        record_file(db, names["file"])
        record_checkpoint(db, claim, 2, names["checkpoint"].rpartition("/")[0], manifest)
        assert sweep(settings, db, store) == 0, "all are younger than a day"
        eager = settings.model_copy(update={"orphan_age_s": -5.0})
        assert sweep(eager, db, store) == 2
        left = {found.key for prefix in ("files", "checkpoints") for found in store.walk(prefix)}
        assert left == {names["file"], names["checkpoint"], names["publishing"]}
    finally:
        server.kill()


@pytest.mark.parametrize("prefix", [EVALUATION, EXPORT])
def test_files_of_tasks_without_a_row_go_too(
    settings: Settings, db: Database, store: ArtifactStore, folder: Path, prefix: str
) -> None:
    put(folder, f"checkpoints/{new_id(prefix)}/1/step-000000/model")
    other = put(folder, f"checkpoints/{new_id('strange-')}/1/step-000000/model")
    assert sweep(settings, db, store) == 1
    assert stored(folder) == {other}
