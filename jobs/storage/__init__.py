"""Where artifacts lie: a local folder, or whatever else fsspec speaks (S3 above all), behind one small interface.

What goes wrong is one of three things: FileNotFoundError (no such object), `StorageFull`, or `StorageError` for
everything that says nothing about the object: the store was not reached, did not answer, refused.
"""

from __future__ import annotations

from pathlib import Path

from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from jobs.storage.base import Storage
from jobs.storage.base import StorageError as StorageError
from jobs.storage.base import StorageFull as StorageFull
from jobs.storage.local import LocalStorage
from jobs.storage.objects import S3_OPTIONS, ObjectStorage, S3Storage


def open_storage(url: str) -> Storage:
    """The storage of an fsspec URL; connects to nothing yet."""
    s3 = split_protocol(url)[0] in ("s3", "s3a")
    fs, root = url_to_fs(url, **(S3_OPTIONS if s3 else {}))
    if isinstance(fs, LocalFileSystem):
        return LocalStorage(Path(root))
    return S3Storage(fs, root) if s3 else ObjectStorage(fs, root)
