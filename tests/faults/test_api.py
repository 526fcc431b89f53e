"""The API killed while requests are on their way: each job is made once or not at all, and can be asked for again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import time
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from jobs.tables import File
from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job
from tests.faults.processes import wait_for

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])
ROUNDS, AT_ONCE = 4, 5


def post(c: Cluster, key: str, body: dict[str, Any], delay: float) -> str | None:
    """The id of the job, or None when the API was gone before it answered."""
    time.sleep(delay)
    try:
        with c.http() as http:
            response = http.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key})
    except httpx2.TransportError:
        return None
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


@BOTH
def test_the_api_is_killed_in_the_middle_of_requests(cluster: MakeCluster, database: str) -> None:
    """In each round some requests begin around the moment of the kill, and are repeated until they are answered."""
    with cluster(database, workers=0) as c, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        wanted = {f"{turn}-{i}": c.body(steps=1, every=None) for turn in range(ROUNDS) for i in range(AT_ONCE)}
        answered: dict[str, str] = {}
        unanswered = 0
        for turn in range(ROUNDS):
            keys = [f"{turn}-{i}" for i in range(AT_ONCE)]
            waiting = [pool.submit(post, c, key, wanted[key], c.random.uniform(0, 0.3)) for key in keys]
            time.sleep(c.random.uniform(0.02, 0.3))
            assert c.api is not None
            c.api.kill()
            told = dict(zip(keys, [future.result() for future in waiting], strict=True))
            unanswered += list(told.values()).count(None)
            c.start_api()
            for key, first in told.items():
                again = post(c, key, wanted[key], 0)
                assert again is not None
                assert first in (None, again), "the repeated request made another job"
                answered[key] = again
        assert unanswered > 0, "no request was ever interrupted"
        assert sorted(job.id for job in c.jobs()) == sorted(answered.values()), "some job was made that nobody got"
        for key, job in answered.items():
            c.adopt(job, wanted[key])
        c.start_workers(2)
        for job in answered.values():
            c.wait_over(job)
            check_job(c, job, epochs=1)


@pytest.mark.parametrize("killed", [True, False], ids=["the API is killed", "the client goes away"])
def test_half_a_request_leaves_nothing(cluster: MakeCluster, killed: bool) -> None:
    with cluster(workers=0) as c:
        body = json.dumps(c.body()).encode()
        upload = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x\r\nContent-'
        upload += b'Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + b'{"messages": []}\n' * 1000
        sent = [
            half("fine_tuning/jobs", "application/json", body),
            half("files", "multipart/form-data; boundary=x", upload),
        ]
        with contextlib.ExitStack() as open_streams:
            for request in sent:
                stream = open_streams.enter_context(socket.create_connection(("127.0.0.1", c.port)))
                stream.sendall(request)
            wait_for(lambda: list((c.home / "tmp").glob("upload-*")), "the upload has begun")
            if killed:
                assert c.api is not None
                c.api.kill()
        if killed:
            c.start_api()
            c.sweep()  # a process that was killed cannot tidy up after itself
        wait_for(lambda: not list((c.home / "tmp").glob("upload-*")), "the half file is gone")
        assert c.jobs() == []
        with c.db.read() as session:
            assert len(list(session.scalars(sa.select(File)))) == 1, "only the one that was uploaded whole"


def half(path: str, kind: str, body: bytes) -> bytes:
    """A request that announces twice the body it brings."""
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer any\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {2 * len(body)}\r\n\r\n".encode() + body
