"""Checkpoints on a generator's disk: what is fetched, verified, kept and dropped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import ArtifactError, ArtifactStore
from jobs.tables import Checkpoint
from worker.generator.cache import CheckpointCache

Publish = Callable[..., Checkpoint]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path / 'artifacts'}")


@pytest.fixture
def publish(store: ArtifactStore, tmp_path: Path) -> Publish:
    def put(name: str, **files: bytes) -> Checkpoint:
        folder = tmp_path / name
        content = {"config.json": b"{}", "model.safetensors": name.encode() * 100, "trainer_state/state.json": b"x"}
        for path, data in (content | files).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        manifest = store.publish_directory(folder, f"checkpoints/{name}")
        return Checkpoint(
            key=f"checkpoints/{name}", manifest=manifest.as_json(), manifest_sha256=manifest.sha256, id=name
        )

    return put


@pytest.fixture
def open_cache(store: ArtifactStore, tmp_path: Path) -> Any:
    opened = []

    def make(max_bytes: int = 10**6) -> CheckpointCache:
        cache = CheckpointCache(store, tmp_path / "cache", max_bytes)
        opened.append(cache)
        return cache

    yield make
    for cache in opened:
        cache.close()


def test_a_checkpoint_is_fetched_without_the_trainers_state(open_cache: Any, publish: Publish) -> None:
    folder = open_cache().fetch(publish("a"))
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors"}


def test_it_is_fetched_once_and_found_again_after_a_restart(
    open_cache: Any, publish: Publish, store: ArtifactStore
) -> None:
    checkpoint = publish("a")
    cache = open_cache()
    folder = cache.fetch(checkpoint)
    store.delete_directory(checkpoint.key)
    assert cache.fetch(checkpoint) == folder
    cache.close()
    assert open_cache().fetch(checkpoint) == folder


def test_what_is_not_whole_is_fetched_again(open_cache: Any, publish: Publish) -> None:
    cache, checkpoint = open_cache(), publish("a")
    folder = cache.fetch(checkpoint)
    (folder / "model.safetensors").write_bytes(b"short")
    assert (cache.fetch(checkpoint) / "model.safetensors").read_bytes() == b"a" * 100


def test_altered_files_are_refused_and_nothing_is_left(
    open_cache: Any, publish: Publish, store: ArtifactStore, tmp_path: Path
) -> None:
    checkpoint = publish("a")
    (tmp_path / "artifacts" / checkpoint.key / "model.safetensors").write_bytes(b"b" * 100)
    with pytest.raises(ArtifactError, match="sha256"):
        open_cache().fetch(checkpoint)
    assert [path for path in (tmp_path / "cache" / "0").iterdir() if path.is_dir()] == []


def test_the_least_recently_used_one_makes_room(open_cache: Any, publish: Publish) -> None:
    cache = open_cache(250)
    first, second = publish("a"), publish("b")
    folders = [cache.fetch(first), cache.fetch(second)]
    for age, folder in zip((100, 200), folders, strict=True):
        os.utime(folder, (age, age))
    cache.fetch(first)
    cache.fetch(publish("c"))
    assert [folder.exists() for folder in folders] == [True, False]


def test_one_that_is_larger_than_the_cache_is_fetched_all_the_same(open_cache: Any, publish: Publish) -> None:
    assert open_cache(10).fetch(publish("a")).is_dir()


def test_two_generators_of_a_machine_have_a_folder_each(open_cache: Any, publish: Publish) -> None:
    checkpoint = publish("a")
    assert open_cache().fetch(checkpoint) != open_cache().fetch(checkpoint)
