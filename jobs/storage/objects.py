"""Object stores by fsspec, and S3 in particular.

An outage is noticed in bounded time: the S3 client gets timeouts and few retries, and an upload that makes no progress
is given up. Its connections live in a background event loop of fsspec, shared by all threads of the process and useless
after a fork; the service starts processes with exec only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from jobs.storage.base import CHUNK, CLOCK, StorageError, Stored

_BLOCK = 8 << 20  # of a ranged read
_PART = 16 << 20  # of a multi-part upload; several are under way at once
_PARTS_AT_ONCE = 4
_MAX_PARTS = 10_000
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 20,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
    "use_listings_cache": False,  # other processes change what is listed
    "skip_instance_cache": True,
}
_S3_TRIES = 2  # of s3fs, around those of botocore: for answers that break off
# The tries above come to minutes when a server takes connections and never answers. So each call has a limit besides,
# in seconds; an upload has one on standing still, since there is no time limit on sending.
_CALL_S = 20.0
_READ_S = 45.0
_LIST_S = 600.0
_STALL_S = 60.0


class ObjectStorage:
    """Any fsspec file system, by its generic methods."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root.rstrip("/")

    def _within(self, seconds: float) -> dict[str, float]:
        """Arguments that limit a call, for file systems that have such."""
        return {}

    def check(self) -> None:
        with self._errors("be reached"):
            self._fs.makedirs(self._root, exist_ok=True)

    def is_empty(self) -> bool:
        with self._errors("list", may_be_missing=True):
            try:
                return not any(
                    not name.endswith(f"/{CLOCK}")
                    for name in self._fs.ls(self._root, detail=False, **self._within(_CALL_S))
                )
            except FileNotFoundError:
                return True

    def put(self, source: Path, key: str) -> None:
        source.stat()  # a missing source is no fault of the store
        path = f"{self._root}/{key}"
        with self._errors(f"write {key}"):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), path)

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            with self._errors(f"read {key}", may_be_missing=True):
                block = self._fs.cat_file(
                    f"{self._root}/{key}", start=start, end=min(start + _BLOCK, end), **self._within(_READ_S)
                )
            if not block:
                return
            for offset in range(0, len(block), CHUNK):
                yield block[offset : offset + CHUNK]
            start += len(block)

    def size(self, key: str) -> int:
        with self._errors(f"look at {key}", may_be_missing=True):
            found = self._fs.info(f"{self._root}/{key}", **self._within(_CALL_S))
        if found["type"] != "file":
            raise FileNotFoundError(key)
        return int(found["size"])

    def remove(self, key: str) -> None:
        try:
            with self._errors(f"delete {key}", may_be_missing=True):
                self._fs.rm_file(f"{self._root}/{key}", **self._within(_CALL_S))
        except FileNotFoundError:
            return

    def walk(self, prefix: str) -> Iterator[Stored]:
        try:
            with self._errors(f"list {prefix}", may_be_missing=True):
                found = self._fs.find(f"{self._root}/{prefix}", detail=True, **self._within(_LIST_S))
        except FileNotFoundError:
            return
        for name, info in found.items():
            yield Stored(name.removeprefix(self._root).strip("/"), int(info["size"]), _modified(info))

    def now(self) -> float:
        path = f"{self._root}/{CLOCK}"
        with self._errors("read the clock"):
            self._fs.pipe_file(path, b"0", **self._within(_CALL_S))
            return _modified(self._fs.info(path, **self._within(_CALL_S)))

    @contextmanager
    def _errors(self, what: str, *, may_be_missing: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the clients behind fsspec have no error in common
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
            raise StorageError(f"the artifact store could not {what}: {reason}") from error


class S3Storage(ObjectStorage):
    """S3 by s3fs. The root is a bucket that exists, and a prefix in it."""

    def __init__(self, fs: Any, root: str) -> None:
        super().__init__(fs, root)
        fs.retries = _S3_TRIES

    def _within(self, seconds: float) -> dict[str, float]:
        return {"timeout": seconds}

    def check(self) -> None:
        bucket = self._root.partition("/")[0]
        try:
            with self._errors("be reached", may_be_missing=True):
                self._fs.call_s3("head_bucket", Bucket=bucket, **self._within(_CALL_S))
        except FileNotFoundError as error:
            raise StorageError(f"the artifact store has no bucket {bucket}") from error

    def pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        try:
            yield from super().pieces(key, start, end)
        except StorageError as error:
            if not _beyond_the_end(error):
                raise

    def put(self, source: Path, key: str) -> None:
        size = source.stat().st_size
        progress = _Progress()
        part = max(_PART, -(-size // _MAX_PARTS))
        with self._errors(f"write {key}"):
            upload = self._fs._put_file(
                str(source), f"{self._root}/{key}", callback=progress, chunksize=part, max_concurrency=_PARTS_AT_ONCE
            )
            task = asyncio.run_coroutine_threadsafe(upload, self._fs.loop)
            while not wait([task], timeout=1).done:
                if time.monotonic() - progress.at > _STALL_S:
                    task.cancel()
                    raise TimeoutError(f"no progress in {_STALL_S:.0f} s")
            task.result()


class _Progress(Callback):  # type: ignore[misc]  # fsspec ships no types
    """Remembers when bytes last arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def relative_update(self, inc: int = 1) -> None:
        self.at = time.monotonic()


def _beyond_the_end(error: StorageError) -> bool:
    """Whether S3 refused a range because the object is shorter."""
    refused = error.__cause__.__cause__ if error.__cause__ else None
    return getattr(refused, "response", {}).get("Error", {}).get("Code") in ("InvalidRange", "416")


def _modified(info: dict[str, Any]) -> float:
    """Modification time of fsspec's description of an object, whose name differs from store to store."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    raise StorageError(f"the artifact store does not say when {info.get('name')} was modified")
