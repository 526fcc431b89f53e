"""What trainers printed, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.repositories import logs
from jobs.repositories.events import Level
from jobs.repositories.jobs import Claim
from tests.api.test_metrics import messages
from tests.service import Service

URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def claim(service: Service) -> Claim:
    """A job with ten lines."""
    claim = service.claim(service.create()["id"])
    for number in range(1, 11):
        append(service, claim, number, "warn" if number == 4 else "error" if number == 7 else "info")
    return claim


def append(service: Service, claim: Claim, number: int, level: Level = "info") -> None:
    with service.ctx.db.transaction() as session:
        assert logs.append(session, claim.job_id, claim.epoch, number, [(level, f"line {number}")])


def test_pages_filters_and_the_tail(service: Service, claim: Claim) -> None:
    url = f"{URL}/{claim.job_id}/logs"
    with service.http() as http:

        def numbers(**params: Any) -> list[int]:
            return [int(line["text"].split()[1]) for line in http.get(url, params=params).json()["data"]]

        page = http.get(url, params={"limit": 4}).json()
        assert (page["has_more"], page["data"][0]["attempt"], page["data"][3]["level"]) == (True, 1, "warn")
        assert numbers(after=page["last_id"], limit=100) == [5, 6, 7, 8, 9, 10]
        assert numbers(tail=3) == [8, 9, 10]
        assert numbers(level="warn") == [4, 7]
        assert numbers(level="error", tail=1) == [7]
        times = [line["created_at"] for line in http.get(url).json()["data"]]
        assert numbers(since=times[5]) == [number for number, time in enumerate(times, 1) if time >= times[5]]
        for wrong in ({"after": "x"}, {"tail": 0}, {"level": "debug"}, {"tail": 1, "after": "1"}):
            assert http.get(url, params=wrong).status_code == 400


def test_the_stream_goes_on_where_it_was(service: Service, claim: Claim) -> None:
    url = f"{URL}/{claim.job_id}/logs/stream"
    with service.http() as http:
        with http.stream("GET", url) as response:
            lines = messages(response.iter_lines())
            seen = [next(lines) for _ in range(10)]
            append(service, claim, 11)
            seen.append(next(lines))
            http.post(f"{URL}/{claim.job_id}/cancel")
            assert list(lines) == [("", "[DONE]")]
        assert [json.loads(data)["text"] for _, data in seen] == [f"line {number}" for number in range(1, 12)]
        for options in ({"headers": {"last-event-id": seen[8][0]}}, {"params": {"after": seen[8][0]}}):
            text = http.get(url, **options).text
            assert list(messages(iter(text.splitlines()))) == [*seen[9:], ("", "[DONE]")]
        assert http.get(url, params={"after": "x"}).status_code == 400
        assert http.get(f"{URL}/ftjob-none/logs/stream").status_code == 404
