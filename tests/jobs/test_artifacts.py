"""The artifact store, on a local folder and on an object store."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.artifacts import CHUNK, ArtifactError, ArtifactStore, Manifest, StorageError, StorageFull
from jobs.storage.local import UNFINISHED


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    kind: str = request.param
    return ArtifactStore(f"file://{tmp_path / 'store'}" if kind == "file" else f"memory://{tmp_path.name}")


def test_put_read_fetch_delete(store: ArtifactStore, tmp_path: Path) -> None:
    store.check()
    content = bytes(range(256)) * 8200  # a piece and some
    source = tmp_path / "source"
    source.write_bytes(content)
    store.put_file(source, "files/a")
    store.put_file(source, "files/b")
    assert b"".join(store.read("files/a", 0, len(content))) == content
    assert b"".join(store.read("files/a", CHUNK - 3, CHUNK + 5)) == content[CHUNK - 3 : CHUNK + 5]
    assert all(len(piece) <= CHUNK for piece in store.read("files/a", 0, len(content)))
    digest = hashlib.sha256(content).hexdigest()
    store.fetch_file("files/a", tmp_path / "deep" / "copy", bytes=len(content), sha256=digest)
    assert (tmp_path / "deep" / "copy").read_bytes() == content
    with pytest.raises(ArtifactError, match="sha256"):
        store.fetch_file("files/a", tmp_path / "copy", bytes=len(content), sha256="0" * 64)
    with pytest.raises(ArtifactError, match="ends at byte"):
        list(store.read("files/a", 0, len(content) + 1))
    for _ in range(2):
        store.delete("files/a")
    with pytest.raises(ArtifactError, match="missing"):
        list(store.read("files/a", 0, 1))


def test_a_second_put_replaces(store: ArtifactStore, tmp_path: Path) -> None:
    for content in (b"one", b"two!"):
        (tmp_path / "source").write_bytes(content)
        store.put_file(tmp_path / "source", "k")
    assert b"".join(store.read("k", 0, 4)) == b"two!"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a/../../b", "..", "a\x00b", "a\\b"])
def test_keys_stay_below_the_root(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(ValueError, match="not an artifact key"):
        store.put_file(tmp_path / "source", key)
    with pytest.raises(ValueError, match="not an artifact key"):
        list(store.read(key, 0, 1))


def test_directories_come_back_verified(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "step-000010"
    (source / "trainer_state").mkdir(parents=True)
    for name, content in (
        ("model-00001-of-00002.safetensors", b"w"), ("model.safetensors.index.json", b"{}"), ("config.json", b"{}"),
        ("tokenizer_config.json", b"{}"), ("trainer_state/optimizer.safetensors", b"o"), ("manifest.json", b"{}"),
    ):  # fmt: skip
        (source / name).write_bytes(content)
    manifest = store.publish_directory(source, "checkpoints/j/1/step-000010")
    assert {file.path: file.kind for file in manifest.files} == {
        "model-00001-of-00002.safetensors": "weights", "model.safetensors.index.json": "weights",
        "config.json": "config", "manifest.json": "config", "tokenizer_config.json": "tokenizer",
        "trainer_state/optimizer.safetensors": "trainer_state",
    }  # fmt: skip
    again = Manifest.from_json(manifest.as_json())
    assert (again, again.sha256, again.bytes) == (manifest, manifest.sha256, 10)
    store.fetch_directory("checkpoints/j/1/step-000010", manifest, tmp_path / "copy")
    for path in source.rglob("*"):
        if path.is_file():
            assert (tmp_path / "copy" / path.relative_to(source)).read_bytes() == path.read_bytes()
    (source / "config.json").write_bytes(b"{ }")
    store.put_file(source / "config.json", "checkpoints/j/1/step-000010/config.json")
    with pytest.raises(ArtifactError):
        store.fetch_directory("checkpoints/j/1/step-000010", manifest, tmp_path / "copy2")


def test_an_empty_directory_is_no_checkpoint(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="empty"):
        store.publish_directory(tmp_path / "empty", "k")


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path / 'store'}")
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "nope", "files/a")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_publishing_again_after_a_crash_replaces(store: ArtifactStore, tmp_path: Path) -> None:
    """What a publish that died left under its key: one file whole, one altered, the rest missing."""
    source = tmp_path / "step-000010"
    source.mkdir()
    for name in ("a", "b", "manifest.json"):
        (source / name).write_bytes(name.encode())
    (tmp_path / "wrong").write_bytes(b"wrong")
    store.put_file(source / "a", "checkpoints/j/1/s/a")
    store.put_file(tmp_path / "wrong", "checkpoints/j/1/s/b")
    manifest = store.publish_directory(source, "checkpoints/j/1/s", read_back=True)
    store.fetch_directory("checkpoints/j/1/s", manifest, tmp_path / "copy")
    assert (tmp_path / "copy" / "b").read_bytes() == b"b"


def test_stored_files_are_looked_at_and_the_final_ones_read(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that loses or alters what it is given, on the way."""
    source, put = tmp_path / "step-000010", store._storage.put
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"right")
    (source / "manifest.json").write_bytes(b"{}")

    def altered(content: bytes | None) -> None:
        def alter(path: Path, key: str) -> None:
            if not key.endswith(".safetensors"):
                put(path, key)
            elif content is not None:
                (tmp_path / "altered").write_bytes(content)
                put(tmp_path / "altered", key)

        monkeypatch.setattr(store._storage, "put", alter)

    altered(None)
    with pytest.raises(ArtifactError, match="missing"):
        store.publish_directory(source, "k")
    altered(b"cut")
    with pytest.raises(ArtifactError, match="has 3 bytes, expected 5"):
        store.publish_directory(source, "k")
    altered(b"wrong")
    store.publish_directory(source, "k")  # its size is right
    with pytest.raises(ArtifactError, match="sha256"):
        store.publish_directory(source, "k", read_back=True)


def test_listing_and_the_clock(store: ArtifactStore, tmp_path: Path) -> None:
    assert store.is_empty()
    (tmp_path / "source").write_bytes(b"four")
    before = store.now()
    assert store.is_empty(), "the clock is no content"
    assert list(store.walk("checkpoints")) == []
    for key in ("files/a", "checkpoints/j/1/s/x", "checkpoints/j/1/s/deep/y", "checkpoints/j/1/s2/x"):
        store.put_file(tmp_path / "source", key)
    assert not store.is_empty()
    found = {stored.key: stored for stored in store.walk("checkpoints/j/1/s")}
    assert found.keys() == {"checkpoints/j/1/s/x", "checkpoints/j/1/s/deep/y"}
    for stored in found.values():
        assert stored.bytes == 4
        assert before - 1 <= stored.modified <= store.now() + 1
    store.delete_directory("checkpoints/j/1/s")
    store.delete_directory("checkpoints/j/1/s")
    assert [stored.key for stored in store.walk("checkpoints")] == ["checkpoints/j/1/s2/x"]
    assert [stored.key for stored in store.walk("files")] == ["files/a"]


def test_an_empty_store_has_lost_everything_not_one_object(store: ArtifactStore, tmp_path: Path) -> None:
    """A folder that is not mounted must not make every checkpoint look damaged."""
    (tmp_path / "source").write_bytes(b"x")
    store.now()
    for _ in range(2):
        with pytest.raises(StorageError, match="nothing else either"):
            list(store.read("files/a", 0, 1))
    store.put_file(tmp_path / "source", "files/b")
    with pytest.raises(ArtifactError, match="files/a is missing"):
        list(store.read("files/a", 0, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def local(folder: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{folder}")


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_told_apart_and_leaves_nothing(local: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 100)
    (tmp_path / "large").write_bytes(b"x" * 2_000_000)
    local.put_file(tmp_path / "small", "files/small")
    digest = hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    ArtifactStore(f"file://{tmp_path / 'other'}").put_file(tmp_path / "large", "files/large")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StorageFull) as raised:
            local.put_file(tmp_path / "large", "files/large")
        with pytest.raises(StorageFull, match="no room"):
            ArtifactStore(f"file://{tmp_path / 'other'}").fetch_file(
                "files/large", tmp_path / "copy", bytes=2_000_000, sha256=digest
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.code, raised.value.status) == ("disk_full", 507)
    assert files_in(folder) == ["files/small"]


def test_a_folder_that_cannot_be_used_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = ArtifactStore(f"file://{tmp_path / 'file' / 'store'}")  # below a file: nothing can be made there
    for use in (
        store.check,
        store.now,
        store.is_empty,
        lambda: store.put_file(tmp_path / "file", "files/a"),
        lambda: list(store.read("files/a", 0, 1)),
    ):
        with pytest.raises(StorageError) as raised:
            use()
        assert raised.value.code == "storage_unavailable"


def test_deleting_takes_empty_folders_along(local: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    for key in ("checkpoints/j/1/s/deep/x", "checkpoints/j/2/s/x"):
        local.put_file(tmp_path / "source", key)
    local.delete_directory("checkpoints/j/1/s")
    assert sorted(path.name for path in (folder / "checkpoints" / "j").iterdir()) == ["2"]
    local.delete("checkpoints/j/2/s/x")
    assert list(folder.iterdir()) == []


def test_folders_that_vanish_are_made_again(local: ArtifactStore, tmp_path: Path) -> None:
    """One thread deletes what it stored, and its folder with it, while another one stores into the same folder."""
    (tmp_path / "source").write_bytes(b"x")
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for _ in range(150):
                local.put_file(tmp_path / "source", f"a/b/c/{name}")
                local.delete(f"a/b/c/{name}")
        except Exception as error:  # reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_a_killed_writer_leaves_nothing_visible(local: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 50_000_000)
    code = f"from jobs.artifacts import *; s = ArtifactStore('file://{folder}')\nfrom pathlib import Path\n"
    code += f"for n in range(1000): s.put_file(Path({str(source)!r}), f'files/{{n}}')"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while not (folder / "files" / "1").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    visible = [name for name in files_in(folder) if not UNFINISHED.search(name)]
    assert len(visible) >= 2
    for name in visible:
        assert (folder / name).stat().st_size == 50_000_000
