"""Metrics over HTTP: formats, parts, and the stream across attempts that replay steps."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.failures import JobError
from jobs.repositories import jobs, metrics
from jobs.repositories.jobs import Claim
from jobs.services.messages import metrics_event
from tests.service import Service

URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each database."""
    return start_service(database_url=database_url)


def tell(service: Service, claim: Claim, step: int, split: Any = "train", **values: float) -> None:
    message, data = metrics_event(step, 20, split, values)
    with service.ctx.db.transaction() as session:
        told = metrics.record_step(
            session, claim.job_id, claim.epoch, step=step, split=split, values=values, message=message, data=data
        )
    assert told


def messages(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Id and data of each message of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if colon:
            fields[name] = value
        elif not line and "data" in fields:
            yield fields.get("id", ""), fields["data"]
            fields = {}


class TestSeries:
    @pytest.fixture
    def url(self, service: Service) -> str:
        claim = service.claim(service.create()["id"])
        for step in range(50):
            tell(service, claim, step, loss=float(step), reward=1.0)
        tell(service, claim, 49, "validation", loss=0.5)
        return f"{URL}/{claim.job_id}/metrics"

    def test_the_formats_say_the_same(self, service: Service, url: str) -> None:
        with service.http() as http:
            page = http.get(url).json()
            lines = http.get(url, params={"format": "jsonl"})
            table = http.get(url, params={"format": "csv"})
        assert (page["object"], page["has_more"], len(page["data"])) == ("list", False, 51)
        assert page["data"][3] == {"step": 3, "split": "train", "values": {"loss": 3.0, "reward": 1.0}}
        assert lines.headers["content-type"] == "application/jsonl"
        assert [json.loads(line) for line in lines.text.splitlines()] == page["data"]
        assert table.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(table.text)))
        assert list(rows[0]) == ["step", "split", "loss", "reward"]
        for row, point in zip(rows, page["data"], strict=True):
            values = {name: float(row[name]) for name in ("loss", "reward") if row[name]}
            assert {"step": int(row["step"]), "split": row["split"], "values": values} == point

    def test_parts(self, service: Service, url: str) -> None:
        with service.http() as http:

            def steps(**params: Any) -> list[int]:
                return [point["step"] for point in http.get(url, params=params).json()["data"]]

            assert steps(since_step=10, until_step=12) == [10, 11, 12]
            assert steps(split="validation") == [49]
            assert steps(names="nothing") == []
            assert steps(downsample=4, split="train", names="loss") == [0, 49]
            assert len(steps(downsample=10, names="loss", split="train")) == 8  # 4 runs, whose ends are extremes
            page = http.get(url, params={"limit": 2, "since_step": 48}).json()
            assert ([point["step"] for point in page["data"]], page["has_more"]) == ([48, 49, 49], False)
            assert http.get(url, params={"limit": 2}).json()["has_more"]
            both = http.get(url, params={"limit": 2, "downsample": 4})
            assert (both.status_code, both.json()["error"]["param"]) == (400, "downsample")
            assert http.get(url, params={"downsample": 3}).status_code == 400


class TestStream:
    def test_a_replayed_step_comes_once(self, service: Service, tmp_path: Path) -> None:
        """One listener from the beginning; one that reconnects after each message, by header or by query."""
        job_id = service.create()["id"]
        claim = service.claim(job_id)
        tell(service, claim, 0, "validation", loss=9.0)
        for step in (1, 2, 3):
            tell(service, claim, step, loss=float(step))
        with service.http() as http, http.stream("GET", f"{URL}/{job_id}/metrics/stream") as response:
            whole = messages(response.iter_lines())
            seen = [next(whole) for _ in range(4)]
            error = JobError("worker_lost", "gone")
            with service.ctx.db.transaction() as session:
                assert jobs.hand_back(session, job_id, claim.epoch, error=error, spend_attempt=True)
            claim = service.claim(job_id)
            for step in (2, 3, 4):  # replayed from a checkpoint, on a machine with other rounding
                tell(service, claim, step, loss=float(step) + 0.25)
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "config.json").write_text("{}")
            service.checkpoint(claim, 4, tmp_path / "model", final=True)
            service.finish(claim, "succeeded")
            seen += list(whole)
        assert seen[-1] == ("", "[DONE]")
        points = [json.loads(data) for _, data in seen[:-1]]
        assert [(point["step"], point["split"]) for point in points] == [
            (0, "validation"),
            *((step, "train") for step in (1, 2, 3, 4)),
        ]
        assert points[-1]["values"] == {"loss": 4.25}
        with service.http() as http:
            for number, (id_, _) in enumerate(seen[:-1]):
                for options in ({"headers": {"last-event-id": id_}}, {"params": {"after": id_}}):
                    text = http.get(f"{URL}/{job_id}/metrics/stream", **options).text
                    assert list(messages(iter(text.splitlines()))) == seen[number + 1 :]
            wrong = http.get(f"{URL}/{job_id}/metrics/stream", params={"after": "ftevent-x"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")

    def test_a_cursor_of_any_event_does(self, service: Service) -> None:
        job_id = service.create()["id"]
        claim = service.claim(job_id)
        tell(service, claim, 1, loss=1.0)
        with service.http() as http:
            created = http.get(f"{URL}/{job_id}/events", params={"limit": 100}).json()["data"][-1]["id"]
            http.post(f"{URL}/{job_id}/cancel")
            text = http.get(f"{URL}/{job_id}/metrics/stream", params={"after": created}).text
        assert [data for _, data in messages(iter(text.splitlines()))][1:] == ["[DONE]"]

    def test_it_ends_with_the_server_and_without_done(self, service: Service) -> None:
        job_id = service.create()["id"]
        tell(service, service.claim(job_id), 1, loss=1.0)
        found: list[tuple[str, str]] = []
        first = threading.Event()

        def listen() -> None:
            with service.http() as http, http.stream("GET", f"{URL}/{job_id}/metrics/stream") as response:
                for message in messages(response.iter_lines()):
                    found.append(message)
                    first.set()

        thread = threading.Thread(target=listen)
        thread.start()
        assert first.wait(20)
        service.server.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert [json.loads(data)["step"] for _, data in found] == [1]

    def test_a_step_without_a_number_is_left_out(self, service: Service) -> None:
        job_id = service.create()["id"]
        claim = service.claim(job_id)
        tell(service, claim, 1)
        tell(service, claim, 1, loss=2.0)
        with service.http() as http:
            http.post(f"{URL}/{job_id}/cancel")
            text = http.get(f"{URL}/{job_id}/metrics/stream").text
        (_, point), done = messages(iter(text.splitlines()))
        assert (json.loads(point)["values"], done[1]) == ({"loss": 2.0}, "[DONE]")
