"""Responses with stored bytes: one object with Range and ETag, or a checkpoint as a tar, both in bounded memory.

A range is one `bytes=` range; several at once are answered with the whole object, as RFC 9110 allows. Bytes come from
the store piece by piece; when an object turns out damaged half-way the connection is cut, which Content-Length shows.
"""

from __future__ import annotations

import base64
import re
import tarfile
from collections.abc import Iterator
from itertools import chain, islice
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from jobs.artifacts import ArtifactStore, Manifest
from jobs.errors import NotFound, RangeNotSatisfiable
from jobs.tables import Checkpoint

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_BLOCK = tarfile.BLOCKSIZE
_CACHING = "private, no-cache"
"""May be kept by the client alone, and only to ask by its ETag."""


def member_response(request: Request, store: ArtifactStore, folder: Checkpoint, path: str, whose: str) -> Response:
    """One of the files of a checkpoint or of a task's result, by its path in the manifest.

    Raises:
        NotFound: there is none; the message names whose folder it is.
        RangeNotSatisfiable: as `object_response`.
    """
    file = Manifest.from_json(folder.manifest).find(path)
    if file is None:
        raise NotFound(f"{whose} has no file {path}", "path")
    name = path.rpartition("/")[2]
    return object_response(request, store, f"{folder.key}/{file.path}", name=name, size=file.bytes, sha256=file.sha256)


def object_response(request: Request, store: ArtifactStore, key: str, *, name: str, size: int, sha256: str) -> Response:
    """A stored object, or the range of it that the request asks for.

    Raises:
        RangeNotSatisfiable: the range lies outside.
    """
    etag = f'"{sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "content-disposition": attachment(name),
        "x-checksum-sha256": sha256,
        "cache-control": _CACHING,
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    fresh = request.headers.get("if-range", etag) == etag
    part = parse_range(wanted, size) if wanted is not None and fresh else None
    start, end = part or (0, size)
    headers["content-length"] = str(end - start)
    if part is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    content = _begun(store.read(key, start, end), 1)
    status = 200 if part is None else 206
    return StreamingResponse(content, status, headers=headers, media_type="application/octet-stream")


def base64_response(store: ArtifactStore, key: str, *, name: str, size: int) -> Response:
    """A stored object as base64, encoded piece by piece."""
    headers = {
        "content-disposition": attachment(f"{name}.base64"),
        "content-length": str(-(-size // 3) * 4),
        "cache-control": "private, no-cache",
    }

    def content() -> Iterator[bytes]:
        waiting = b""
        for piece in store.read(key, 0, size):
            whole = waiting + piece
            cut = len(whole) // 3 * 3
            yield base64.b64encode(whole[:cut])
            waiting = whole[cut:]
        yield base64.b64encode(waiting)

    return StreamingResponse(_begun(content(), 1), headers=headers, media_type="text/plain")


def tar_response(
    request: Request, store: ArtifactStore, key: str, manifest: Manifest, *, folder: str, time: int
) -> Response:
    """All files of a checkpoint below `folder`. The same checkpoint always gives the same bytes."""
    etag = f'"{manifest.sha256}.tar"'
    headers = {"etag": etag, "content-disposition": attachment(f"{folder}.tar"), "cache-control": _CACHING}
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    heads = [_tar_header(f"{folder}/{file.path}", file.bytes, time) for file in manifest.files]
    padded = [file.bytes + _padding(file.bytes) for file in manifest.files]
    headers["content-length"] = str(sum(map(len, heads)) + sum(padded) + 2 * _BLOCK)

    def content() -> Iterator[bytes]:
        for head, file in zip(heads, manifest.files, strict=True):
            yield head
            yield from store.read(f"{key}/{file.path}", 0, file.bytes)
            yield bytes(_padding(file.bytes))
        yield bytes(2 * _BLOCK)

    return StreamingResponse(_begun(content(), 2), headers=headers, media_type="application/x-tar")


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for what may be ignored.

    Raises:
        RangeNotSatisfiable: the range lies outside.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise RangeNotSatisfiable(f"The range {text} lies outside the {size} bytes.", size)
    return start, end


def attachment(name: str) -> str:
    """A Content-Disposition that carries any name safely (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _begun(content: Iterator[bytes], pieces: int) -> Iterator[bytes]:
    """The same content, its first pieces read already: a store that does not answer can still be said so."""
    first = list(islice(content, pieces))
    return chain(first, content)


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in header.split(","))


def _tar_header(name: str, size: int, time: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, time, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK
