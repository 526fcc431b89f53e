"""The artifact store on S3: a real server of its protocol, the real client, and outages of both kinds."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.artifacts import ArtifactError, ArtifactStore, Manifest, StorageError
from jobs.storage import objects
from tests.s3 import S3Server

KEY = "checkpoints/ftjob-1/1/step-000010"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator sets."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path) -> str:
    return server.bucket(f"bucket-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}")


@pytest.fixture
def store(bucket: str) -> ArtifactStore:
    return ArtifactStore(f"s3://{bucket}/some/prefix")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with files of different sizes, one of which takes several parts."""
    folder = tmp_path / "step-000010"
    (folder / "trainer_state").mkdir(parents=True)
    for name, size in (("model.safetensors", 3_000_000), ("trainer_state/state.json", 2), ("manifest.json", 0)):
        (folder / name).write_bytes(os.urandom(size))
    return folder


def test_objects(store: ArtifactStore, server: S3Server, bucket: str, tmp_path: Path) -> None:
    store.check()
    assert store.is_empty()
    content = os.urandom(9_000_001)  # two blocks of a ranged read
    (tmp_path / "source").write_bytes(content)
    store.put_file(tmp_path / "source", "files/a")
    assert server.client().get_object(Bucket=bucket, Key="some/prefix/files/a")["Body"].read() == content
    assert not store.is_empty()
    assert b"".join(store.read("files/a", 0, len(content))) == content
    assert b"".join(store.read("files/a", 8_388_600, 8_388_620)) == content[8_388_600:8_388_620]
    store.fetch_file("files/a", tmp_path / "copy", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert (tmp_path / "copy").read_bytes() == content
    for start, end in ((0, len(content) + 1), (len(content), len(content) + 1), (len(content) + 5, len(content) + 9)):
        with pytest.raises(ArtifactError, match="ends at byte"):
            list(store.read("files/a", start, end))
    with pytest.raises(ArtifactError, match="missing"):
        list(store.read("files/b", 0, 1))
    (tmp_path / "source").write_bytes(b"other")
    store.put_file(tmp_path / "source", "files/a")
    assert b"".join(store.read("files/a", 0, 5)) == b"other"
    for _ in range(2):
        store.delete("files/a")
    assert "Contents" not in server.client().list_objects_v2(Bucket=bucket)


def test_large_objects_go_in_parts(
    store: ArtifactStore, server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PART", 5 << 20)  # the least that S3 allows
    monkeypatch.setattr(objects, "_PARTS_AT_ONCE", 2)
    content = os.urandom(1 << 20) * 26
    (tmp_path / "source").write_bytes(content)
    store.put_file(tmp_path / "source", "files/a")
    assert server.client().head_object(Bucket=bucket, Key="some/prefix/files/a")["ETag"].endswith('-6"')  # parts
    store.verify_file("files/a", bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_checkpoints(store: ArtifactStore, server: S3Server, bucket: str, checkpoint: Path, tmp_path: Path) -> None:
    manifest = store.publish_directory(checkpoint, KEY, read_back=True)
    assert store.publish_directory(checkpoint, KEY, read_back=True) == manifest
    store.publish_directory(checkpoint, f"{KEY}0")
    store.fetch_directory(KEY, manifest, tmp_path / "copy")
    for file in manifest.files:
        assert (tmp_path / "copy" / file.path).read_bytes() == (checkpoint / file.path).read_bytes()
    now = store.now()
    found = {stored.key: stored for stored in store.walk(KEY)}
    assert found.keys() == {f"{KEY}/{file.path}" for file in manifest.files}
    for stored in found.values():
        assert now - 60 < stored.modified <= now + 1
    assert found[f"{KEY}/model.safetensors"].bytes == 3_000_000
    store.delete_directory(KEY)
    assert list(store.walk(KEY)) == []
    assert len(list(store.walk(f"{KEY}0"))) == 3, "a key that begins alike is another one"


def test_damage_is_told_from_an_outage(
    store: ArtifactStore, server: S3Server, bucket: str, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = store.publish_directory(checkpoint, KEY)
    place = {"Bucket": bucket, "Key": f"some/prefix/{KEY}/model.safetensors"}
    size = (checkpoint / "model.safetensors").stat().st_size
    for body, message in ((bytes(size), "sha256"), (b"short", "ends at byte")):
        server.client().put_object(**place, Body=body)
        with pytest.raises(ArtifactError, match=message):
            store.fetch_directory(KEY, manifest, tmp_path / "copy")
    server.client().delete_object(**place)
    with pytest.raises(ArtifactError, match="missing"):
        store.fetch_directory(KEY, manifest, tmp_path / "copy")
    elsewhere = ArtifactStore(f"s3://{bucket}/another/prefix")
    with pytest.raises(StorageError, match="nothing else either"):
        elsewhere.fetch_directory(KEY, manifest, tmp_path / "copy")
    nowhere = ArtifactStore("s3://no-such-bucket/x")
    for use in (nowhere.check, lambda: nowhere.fetch_directory(KEY, manifest, tmp_path / "copy"), nowhere.now):
        with pytest.raises(StorageError):
            use()


def test_a_final_checkpoint_is_read_back(
    store: ArtifactStore, server: S3Server, bucket: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that alters what it is given, keeping the size."""
    put = store._storage.put

    def alter(source: Path, key: str) -> None:
        put(source, key)
        if key.endswith(".safetensors"):
            body = bytes(source.stat().st_size)
            server.client().put_object(Bucket=bucket, Key=f"some/prefix/{key}", Body=body)

    monkeypatch.setattr(store._storage, "put", alter)
    store.publish_directory(checkpoint, KEY)
    with pytest.raises(ArtifactError, match="sha256"):
        store.publish_directory(checkpoint, KEY, read_back=True)


def test_threads_share_a_store(store: ArtifactStore, tmp_path: Path) -> None:
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            source = tmp_path / f"source-{number}"
            source.write_bytes(bytes([number]) * 100_000)
            for turn in range(3):
                store.put_file(source, f"files/{number}-{turn}")
                assert b"".join(store.read(f"files/{number}-{turn}", 0, 100_000)) == source.read_bytes()
        except Exception as error:  # reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(list(store.walk("files"))) == 24


def test_a_dead_server_is_an_outage_and_nothing_else(
    store: ArtifactStore, server: S3Server, bucket: str, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = Manifest(())
    publishing = threading.Event()
    put = store._storage.put

    def put_and_tell(source: Path, key: str) -> None:
        put(source, key)
        if not publishing.is_set():  # after the first object
            server.kill()
            publishing.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._storage, "put", put_and_tell)
        with pytest.raises(StorageError) as raised:
            store.publish_directory(checkpoint, KEY)
    assert (raised.value.code, raised.value.status) == ("storage_unavailable", 503)
    (tmp_path / "source").write_bytes(b"x")
    for use in (
        store.check,
        store.is_empty,
        store.now,
        lambda: list(store.read("files/a", 0, 1)),
        lambda: list(store.walk("files")),
        lambda: store.delete("files/a"),
        lambda: store.put_file(tmp_path / "source", "files/a"),
    ):
        with pytest.raises(StorageError):
            use()
    server.start()
    server.bucket(bucket)
    manifest = store.publish_directory(checkpoint, KEY, read_back=True)  # the same store, after the outage
    store.fetch_directory(KEY, manifest, tmp_path / "copy")


def test_a_server_that_never_answers_is_noticed(
    store: ArtifactStore, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(b"x")
    store.put_file(tmp_path / "source", "files/a")
    server.freeze()
    for name in ("_CALL_S", "_READ_S", "_LIST_S", "_STALL_S"):  # a busy server may take as long
        monkeypatch.setattr(objects, name, 1.0)
    try:
        for use in (
            store.check,
            store.is_empty,
            store.now,
            lambda: list(store.read("files/a", 0, 1)),
            lambda: list(store.walk("files")),
            lambda: store.delete("files/a"),
            lambda: store.put_file(tmp_path / "source", "files/b"),
        ):
            with pytest.raises(StorageError, match=r"no answer in time|no progress"):
                use()
    finally:
        monkeypatch.undo()
        server.thaw()
    store.put_file(tmp_path / "source", "files/b")
    assert b"".join(store.read("files/b", 0, 1)) == b"x"
