"""Uploading a file: at once, or in parts when it is big. A part that does not arrive is sent again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from cli.client import Service
from cli.errors import CliError

PART_BYTES = 64 * 1024 * 1024
_TRIES = 4
_TIMEOUT_S = 600.0
Progress = Callable[[int, int], None]


def _silent(sent: int, size: int) -> None:
    """Nobody watches."""


def upload(
    service: Service,
    path: Path,
    *,
    purpose: str = "fine-tune",
    expires_s: int | None = None,
    progress: Progress = _silent,
    part_bytes: int = PART_BYTES,
) -> dict[str, Any]:
    """Upload a file; the file object of the service. Raises CliError.

    Args:
        progress: told after each part how many bytes have arrived, and of how many.
    """
    try:
        size = path.stat().st_size
        if size <= part_bytes:
            return _at_once(service, path, purpose, expires_s)
        return _in_parts(service, path, size, purpose, expires_s, progress, part_bytes)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from error


def _at_once(service: Service, path: Path, purpose: str, expires_s: int | None) -> dict[str, Any]:
    fields = {"purpose": purpose}
    if expires_s is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_s)}
    with path.open("rb") as file:
        parts = {"file": (path.name, file, "application/octet-stream")}
        return service.call("POST", "files", data=fields, files=parts, timeout=_TIMEOUT_S)


def _in_parts(
    service: Service,
    path: Path,
    size: int,
    purpose: str,
    expires_s: int | None,
    progress: Progress,
    part_bytes: int,
) -> dict[str, Any]:
    body: dict[str, Any] = {"bytes": size, "filename": path.name, "purpose": purpose}
    body["mime_type"] = "application/octet-stream"
    if expires_s is not None:
        body["expires_after"] = {"anchor": "created_at", "seconds": expires_s}
    url = f"uploads/{service.call('POST', 'uploads', json=body)['id']}"
    part_ids, sent, md5 = [], 0, hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            part_ids.append(_send(service, f"{url}/parts", piece))
            md5.update(piece)
            sent += len(piece)
            progress(sent, size)
    done = {"part_ids": part_ids, "md5": md5.hexdigest()}
    completed = service.call("POST", f"{url}/complete", json=done, timeout=_TIMEOUT_S)
    file_object: dict[str, Any] = completed["file"]
    return file_object


def _send(service: Service, url: str, piece: bytes) -> str:
    for number in range(_TRIES):
        headers = {"x-stainless-retry-count": str(number)}  # the service then stores it once
        try:
            sent = service.call("POST", url, files={"data": ("upload", piece)}, headers=headers, timeout=_TIMEOUT_S)
            return str(sent["id"])
        except CliError as error:
            if number == _TRIES - 1 or not isinstance(error.__cause__, httpx2.TransportError):
                raise
    raise AssertionError("unreachable: the last try returns or raises")
