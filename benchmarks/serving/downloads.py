"""A large checkpoint downloaded by several clients at once, each cut off in the middle and resumed with Range.

The file is made of blocks that all differ, so a piece at the wrong place changes the hash. It is stored as a worker
stores a checkpoint; the clients are threads with plain sockets, whose hashing leaves Python's lock.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.job_plane.plane import Plane, create_body
from benchmarks.job_plane.rows import row
from benchmarks.serving.process import Memory, Shares
from cli.ports import LOOPBACK
from jobs.artifacts import ArtifactStore
from jobs.repositories import checkpoints, jobs

NAME = "model.safetensors"
_BLOCK = 1 << 20
_MIB = 1 << 20
_STEP = 1
_PATIENCE_S = 300


@dataclass(frozen=True)
class Download:
    """What one client got."""

    sha256: str
    promised: str
    """The hash that the API stated."""
    cut_at: int
    seconds: float


def downloads(folder: Path, plane: Plane, kind: str, size: int, clients: int) -> list[dict[str, Any]]:
    """Measure; the rows of the result."""
    checkpoint_id, sha256 = _stored(folder, plane, size)
    api = plane.start_api()
    path = f"/v1/fine_tuning/checkpoints/{checkpoint_id}/files/{NAME}"
    draw = random.Random(1)
    cuts = [int(size * draw.uniform(0.3, 0.7)) for _ in range(clients)]
    shares = Shares({"api": api, "load generator": os.getpid()})
    began = time.monotonic()
    with Memory(api, every_s=0.02) as memory, ThreadPoolExecutor(clients) as pool:
        all_cut = threading.Barrier(clients)  # so that both halves are downloaded by all at once
        done = list(pool.map(lambda cut: _download(plane.port, path, size, cut, all_cut), cuts))
    seconds, taken = time.monotonic() - began, shares.taken()
    right = sum(one.sha256 == one.promised == sha256 for one in done)
    said = f"{size / _MIB:.0f} MiB, {clients} clients at once, each cut once and resumed"
    return [
        row("downloads with the right sha256", kind, right, "", f"{clients}", said),
        row("download rate, all together", kind, clients * size / _MIB / seconds, "MiB/s"),
        row("API memory before", kind, memory.samples[0][1] / _MIB, "MiB"),
        row("API memory, peak", kind, memory.peak() / _MIB, "MiB", "< 300"),
        row("API memory after", kind, memory.samples[-1][1] / _MIB, "MiB"),
        *(row(f"CPU of {name}", kind, share, "cores") for name, share in taken.items()),
    ]


def _stored(folder: Path, plane: Plane, size: int) -> tuple[str, str]:
    """Store a checkpoint of a running job; its id and the hash of its large file."""
    api = plane.start_api()
    with plane.http() as client:
        body = create_body(plane.upload(client))
        job_id = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
    plane.stop(api)
    with plane.database.transaction() as session:
        claim = jobs.claim(session, job_id, "benchmark", 3600)
    if claim is None:
        raise RuntimeError("the job could not be claimed")
    source = folder / "checkpoint"
    source.mkdir()
    digest = hashlib.sha256()
    with (source / NAME).open("wb") as file:
        for block in _blocks(size):
            digest.update(block)
            file.write(block)
    key = f"checkpoints/{job_id}/{claim.epoch}/step-{_STEP:06d}"
    manifest = ArtifactStore(str(plane.settings.artifacts_url)).publish_directory(source, key)
    shutil.rmtree(source)
    with plane.database.transaction() as session:
        made = checkpoints.insert(session, job_id, claim.epoch, _STEP, key, manifest, True, {})
    if made is None:
        raise RuntimeError("the checkpoint was not stored")
    return made, digest.hexdigest()


def _blocks(size: int) -> Iterator[bytes]:
    noise = random.Random(2).randbytes(_BLOCK - 8)
    for number in range(-(-size // _BLOCK)):
        yield (number.to_bytes(8, "big") + noise)[: size - number * _BLOCK]


def _download(port: int, path: str, size: int, cut_at: int, all_cut: threading.Barrier) -> Download:
    began, digest = time.monotonic(), hashlib.sha256()
    first, etag, promised = _part(port, path, 0, cut_at, digest, {})
    all_cut.wait(_PATIENCE_S)
    rest, _, _ = _part(port, path, cut_at, size, digest, {"If-Range": etag})
    if (first, rest) != (f"bytes 0-{size - 1}/{size}", f"bytes {cut_at}-{size - 1}/{size}"):
        raise RuntimeError(f"not the ranges that were asked for: {first}, {rest}")
    return Download(digest.hexdigest(), promised, cut_at, time.monotonic() - began)


def _part(
    port: int, path: str, start: int, end: int, digest: hashlib._Hash, headers: dict[str, str]
) -> tuple[str, str, str]:
    """Read bytes `start` to `end` of what is asked for to the end of the file; its range, ETag and stated hash."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_PATIENCE_S)
    connection.request("GET", path, headers={"Authorization": "Bearer key", "Range": f"bytes={start}-"} | headers)
    response = connection.getresponse()
    if response.status != 206:
        raise RuntimeError(f"not a 206: {response.status} {response.read()[:500]!r}")
    buffer = memoryview(bytearray(_BLOCK))
    while start < end:
        count = response.readinto(buffer[: min(_BLOCK, end - start)])
        if not count:
            raise RuntimeError(f"{path} broke off at byte {start}")
        digest.update(buffer[:count])
        start += count
    connection.close()  # in the middle, unless it was the end: what is under way is thrown away
    response.close()
    return tuple(response.headers[name] for name in ("content-range", "etag", "x-checksum-sha256"))  # type: ignore[return-value]
