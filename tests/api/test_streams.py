"""How many streams a key may have open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.api.tenants import Tenants
from tests.running import wait_until

JOBS = "/v1/fine_tuning/jobs"


def test_one_too_many_is_refused_until_another_ends(make_tenants: Callable[..., Tenants]) -> None:
    tenants = make_tenants(max_streams=2)
    project = tenants.project()
    key, other = (tenants.key(project)["value"] for _ in range(2))
    path = f"{JOBS}/{tenants.job(key)}/events/stream"

    def status(given: str) -> int:
        with tenants.http(given) as http, http.stream("GET", path) as response:
            if response.status_code == 429:
                response.read()
                assert response.json()["error"]["code"] == "rate_limit_exceeded"
                assert response.headers["retry-after"] == "5"
            return int(response.status_code)

    lines = []
    with ExitStack() as kept:
        for _ in range(2):
            stream = kept.enter_context(kept.enter_context(tenants.http(key)).stream("GET", path))
            lines.append(stream.iter_lines())  # which closes the stream when nobody has it any more
            next(lines[-1])
        assert status(key) == 429
        assert status(other) == 200, "each key has its own"
    wait_until(lambda: status(key) == 200)


def test_a_refused_stream_takes_no_place(make_tenants: Callable[..., Tenants]) -> None:
    tenants = make_tenants(max_streams=1)
    key = tenants.key(tenants.project())["value"]
    with tenants.http(key) as http:
        for _ in range(3):
            assert http.get(f"{JOBS}/ftjob-none/events/stream").status_code == 404
    job: Any = tenants.job(key)
    with tenants.http(key) as http, http.stream("GET", f"{JOBS}/{job}/events/stream") as stream:
        assert stream.status_code == 200
