"""The artifact store, on a local folder and on an object store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.artifacts import CHUNK, ArtifactError, ArtifactStore, Manifest


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
