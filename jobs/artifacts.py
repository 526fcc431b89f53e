"""The artifact store: uploaded files and checkpoints behind one fsspec URL (`file://`, `s3://`, `memory://`).

A single object appears complete or not at all: locally it is written beside its place and renamed; object stores do
that by themselves. A checkpoint is many objects, so it is published manifest last, and exists for readers only when its
database row does. Keys are made by us, never from names a user chose. Not covered: removing leftovers of a publish that
died half-way.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from bgpo.errors import BgpoError

CHUNK = 1 << 20
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
    """Objects by key under one root."""

    def __init__(self, url: str) -> None:
        self._fs, root = url_to_fs(url)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def _path(self, key: str) -> str:
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or "\\" in key or "\x00" in key:
            raise ValueError(f"not an artifact key: {key!r}")
        return f"{self._root}/{key}"

    def check(self) -> None:
        """Raise OSError when the store cannot be reached or written."""
        self._fs.makedirs(self._root, exist_ok=True)
        if self._local and not os.access(self._root, os.W_OK):
            raise PermissionError(f"cannot write to {self._root}")

    def put_file(self, source: Path, key: str) -> None:
        """Store a local file."""
        path = self._path(key)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if not self._local:
            self._fs.put_file(str(source), path)
            return
        unfinished = f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            self._fs.put_file(str(source), unfinished)
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            Path(unfinished).unlink(missing_ok=True)

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in pieces of at most 1 MiB.

        Raises:
            ArtifactError: when the object is missing or ends early.
        """
        try:
            with self._fs.open(self._path(key), "rb", cache_type="none") as file:
                file.seek(start)
                while start < end:
                    piece = file.read(min(CHUNK, end - start))
                    if not piece:
                        raise ArtifactError(f"stored object {key} ends at byte {start}, expected {end}")
                    start += len(piece)
                    yield piece
        except FileNotFoundError as error:
            raise ArtifactError(f"stored object {key} is missing") from error

    def fetch_file(self, key: str, target: Path, *, bytes: int, sha256: str) -> None:
        """Copy an object to a local file, and verify it.

        Raises:
            ArtifactError: when it is missing or its size or hash differs.
        """
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for piece in self.read(key, 0, bytes):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != sha256:
            raise ArtifactError(f"stored object {key} does not have the recorded sha256")

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is fine."""
        try:
            self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            return

    def publish_directory(self, directory: Path, key: str) -> Manifest:
        """Store a complete local checkpoint directory under `key`, its manifest last."""
        manifest = Manifest(tuple(_describe(directory, path) for path in _files(directory)))
        for file in sorted(manifest.files, key=lambda file: file.path == MANIFEST):
            self.put_file(directory / file.path, f"{key}/{file.path}")
        return manifest

    def fetch_directory(self, key: str, manifest: Manifest, target: Path) -> None:
        """Copy a checkpoint to a local directory and verify every file. Raises ArtifactError."""
        for file in manifest.files:
            self.fetch_file(f"{key}/{file.path}", target / file.path, bytes=file.bytes, sha256=file.sha256)


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
