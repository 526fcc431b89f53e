"""The artifact store: uploaded files and checkpoints behind one fsspec URL (`file://`, `s3://`, `memory://`).

A single object appears complete or not at all (`jobs.storage`). A checkpoint is many objects, so it is published
manifest last, and exists for readers only when its database row does; the row holds the sizes and hashes that every
later read is measured by. Keys are made by us, never from names a user chose. What a publish that died half-way leaves
is `jobs.services.sweep`'s.

An object that is missing or not what its row says is an `ArtifactError`. A store that cannot be used raises
`StorageError` instead: it says nothing about the object. So does an empty root, since rows that name
objects and a store without any mean that a disk is not mounted or the URL has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bgpo.errors import BgpoError
from jobs.storage import open_storage
from jobs.storage.base import CHUNK as CHUNK
from jobs.storage.base import StorageError as StorageError
from jobs.storage.base import StorageFull as StorageFull
from jobs.storage.base import Stored, disk_errors

MANIFEST = "manifest.json"
Kind = Literal["weights", "adapter", "tokenizer", "trainer_state", "config"]
_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


class ArtifactError(BgpoError):
    """A stored object is missing or not what its record says."""

    code = "artifact_error"


@dataclass(frozen=True)
class ManifestFile:
    """One file of a checkpoint; `path` is relative, with forward slashes."""

    path: str
    bytes: int
    sha256: str
    kind: Kind


@dataclass(frozen=True)
class Manifest:
    """All files of a checkpoint, by path."""

    files: tuple[ManifestFile, ...]

    @property
    def bytes(self) -> int:
        """Sum of the sizes."""
        return sum(file.bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """Identifies the content of the whole checkpoint."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> list[dict[str, Any]]:
        """The form stored with the checkpoint's row."""
        return [asdict(file) for file in self.files]

    @classmethod
    def from_json(cls, files: list[dict[str, Any]]) -> Manifest:
        """Read what `as_json` wrote."""
        return cls(tuple(ManifestFile(**file) for file in files))

    def find(self, path: str) -> ManifestFile | None:
        """The file at exactly this path."""
        return next((file for file in self.files if file.path == path), None)


class ArtifactStore:
    """Objects by key under one root. Threads may share it.

    Every method raises StorageError when the store cannot be used, StorageFull when there is no room.
    """

    def __init__(self, url: str) -> None:
        self._storage = open_storage(url)

    def check(self) -> None:
        """Raise StorageError when the store cannot be reached or written."""
        self._storage.check()

    def put_file(self, source: Path, key: str) -> None:
        """Store a local file; what the key held before is replaced."""
        self._storage.put(source, _checked(key))

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in pieces of at most 1 MiB.

        Raises:
            ArtifactError: when the object is missing or ends early.
        """
        _checked(key)
        try:
            for piece in self._storage.pieces(key, start, end):
                start += len(piece)
                yield piece
        except FileNotFoundError:
            raise self._missing(key) from None
        if start < end:
            raise ArtifactError(f"stored object {key} ends at byte {start}, expected {end}")

    def fetch_file(self, key: str, target: Path, *, bytes: int, sha256: str) -> None:
        """Copy an object to a local file, and verify it.

        Raises:
            ArtifactError: when it is missing or its size or hash differs.
        """
        digest = hashlib.sha256()
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in self.read(key, 0, bytes):
                    digest.update(piece)
                    file.write(piece)
        _compare(key, digest.hexdigest(), sha256)

    def verify_file(self, key: str, *, bytes: int, sha256: str) -> None:
        """Read an object and hold it against its size and hash. Raises ArtifactError."""
        self._verify_size(key, bytes)
        digest = hashlib.sha256()
        for piece in self.read(key, 0, bytes):
            digest.update(piece)
        _compare(key, digest.hexdigest(), sha256)

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is fine."""
        self._storage.remove(_checked(key))

    def publish_directory(self, directory: Path, key: str, *, read_back: bool = False) -> Manifest:
        """Store a complete local checkpoint directory under `key`, its manifest last, and look at what is there then.

        Publishing again under the same key, after a try that broke off, replaces file by file.

        Args:
            read_back: read every object back and compare its hash, not only its size.

        Raises:
            ArtifactError: the directory is empty, or the store returns something else than it was given.
        """
        manifest = Manifest(tuple(_describe(directory, path) for path in _files(directory)))
        for file in sorted(manifest.files, key=lambda file: file.path == MANIFEST):
            self.put_file(directory / file.path, f"{key}/{file.path}")
        for file in manifest.files:
            if read_back:
                self.verify_file(f"{key}/{file.path}", bytes=file.bytes, sha256=file.sha256)
            else:
                self._verify_size(f"{key}/{file.path}", file.bytes)
        return manifest

    def fetch_directory(self, key: str, manifest: Manifest, target: Path) -> None:
        """Copy a checkpoint to a local directory and verify every file. Raises ArtifactError."""
        for file in manifest.files:
            self.fetch_file(f"{key}/{file.path}", target / file.path, bytes=file.bytes, sha256=file.sha256)

    def delete_directory(self, key: str) -> None:
        """Remove everything below `key`."""
        for stored in list(self._storage.walk(_checked(key))):
            self._storage.remove(stored.key)

    def walk(self, prefix: str) -> Iterator[Stored]:
        """All objects below the folder `prefix`, with their ages on the clock of `now`."""
        return self._storage.walk(_checked(prefix))

    def now(self) -> float:
        """The store's clock: unix seconds."""
        return self._storage.now()

    def is_empty(self) -> bool:
        """Whether nothing is stored at all, or the store's folder is not there."""
        return self._storage.is_empty()

    def _size(self, key: str) -> int:
        try:
            return self._storage.size(_checked(key))
        except FileNotFoundError:
            raise self._missing(key) from None

    def _verify_size(self, key: str, expected: int) -> None:
        size = self._size(key)
        if size != expected:
            raise ArtifactError(f"stored object {key} has {size} bytes, expected {expected}")

    def _missing(self, key: str) -> BgpoError:
        if self._storage.is_empty():
            return StorageError(f"the artifact store is empty: {key} is not there, and nothing else either")
        return ArtifactError(f"stored object {key} is missing")


def is_adapter_only(manifest: Manifest) -> bool:
    """Whether a model is loaded from this checkpoint and its base model together."""
    return not any(file.kind == "weights" and "/" not in file.path for file in manifest.files)


def has_adapter(manifest: Manifest) -> bool:
    """Whether a LoRA adapter is among its files."""
    return any(file.kind == "adapter" for file in manifest.files)


def adapter_files(manifest: Manifest) -> list[ManifestFile]:
    """The adapter alone, which a base model is loaded with."""
    return [file for file in manifest.files if file.kind == "adapter"]


def model_files(manifest: Manifest) -> list[ManifestFile]:
    """What a model is loaded from: no trainer's state, and no adapter beside weights it is merged into."""
    unused = {"trainer_state"} if is_adapter_only(manifest) else {"trainer_state", "adapter"}
    return [file for file in manifest.files if file.kind not in unused]


def _checked(key: str) -> str:
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\\" in key or "\x00" in key:
        raise ValueError(f"not an artifact key: {key!r}")
    return key


def _compare(key: str, found: str, expected: str) -> None:
    if found != expected:
        raise ArtifactError(f"stored object {key} does not have the recorded sha256")


def sha256_of(path: Path) -> str:
    """Hex digest of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[str]:
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    if not found:
        raise ArtifactError(f"checkpoint directory {directory} is empty")
    return found


def _describe(directory: Path, path: str) -> ManifestFile:
    local = directory / path
    return ManifestFile(path, local.stat().st_size, sha256_of(local), _kind(path))


def _kind(path: str) -> Kind:
    name = PurePosixPath(path).name
    if path.startswith("trainer_state/"):
        return "trainer_state"
    if name.startswith("adapter"):
        return "adapter"
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "weights"
    return "tokenizer" if name.startswith(_TOKENIZER) else "config"
