"""/metrics: who may read it, and whether its numbers are those of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from jobs.repositories import metrics, workers
from jobs.resources import Slot

JOBS = "/v1/fine_tuning/jobs"


def scrape(service: Any, **headers: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every value by name and labels."""
    with service.http() as http:
        response = http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    return {(one.name, frozenset(one.labels.items())): one.value for each in families for one in each.samples}


def value(found: dict[Any, float], name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


class TestAccess:
    def test_this_machine_needs_no_token(self, start_service: Callable[..., Any]) -> None:
        service = start_service(api_key="sk", admin_key="sk-admin")
        assert scrape(service)
        with service.http() as http:
            for headers in ({"host": "api.example.org"}, {"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=x"}):
                response = http.get("/metrics", headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_permissions")

    def test_with_a_token_nothing_else_will_do(self, start_service: Callable[..., Any]) -> None:
        service = start_service(api_key="sk", metrics_token="scrape-me")
        assert scrape(service, authorization="Bearer scrape-me", host="api.example.org")
        with service.http() as http:
            for headers in ({}, {"authorization": "Bearer sk"}, {"authorization": "Basic scrape-me"}):
                response = http.get("/metrics", headers=headers)
                assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


class TestRequests:
    def test_are_counted_by_route_and_status(self, service: Any) -> None:
        job_id = service.create()["id"]
        with service.http() as http:
            for _ in range(3):
                http.get(f"{JOBS}/{job_id}")
            http.get(f"{JOBS}/ftjob-none")
            http.get("/v1/nothing/like/it")
            http.request("BREW", "/v1/files")
        found = scrape(service)
        assert value(found, "bgpo_requests_total", method="GET", route=f"{JOBS}/{{job_id}}", status="200") == 3
        assert value(found, "bgpo_requests_total", method="GET", route=f"{JOBS}/{{job_id}}", status="404") == 1
        assert value(found, "bgpo_requests_total", method="POST", route=JOBS, status="200") == 1
        assert value(found, "bgpo_requests_total", method="GET", route="unmatched", status="404") == 1
        assert value(found, "bgpo_requests_in_flight") == 1  # the scrape itself
        labels = {"method": "POST", "route": JOBS}
        assert value(found, "bgpo_request_seconds_count", **labels) == 1
        assert 0 < (value(found, "bgpo_request_seconds_sum", **labels) or 0) < 60
        assert {dict(key[1])["method"] for key in found if key[0] == "bgpo_requests_total"} == {"GET", "POST", "other"}

    def test_no_client_can_make_series(self, service: Any) -> None:
        with service.http() as http:
            for number in range(50):
                http.get(f"/v1/files/file-{number}")
                http.get(f"/x{number}")
        routes = {dict(key[1])["route"] for key in scrape(service) if key[0] == "bgpo_requests_total"}
        assert routes == {"/v1/files/{file_id}", "unmatched"}

    def test_streams_are_counted_while_they_are_open(self, service: Any) -> None:
        job_id = service.create()["id"]
        with service.http() as http, http.stream("GET", f"{JOBS}/{job_id}/events/stream") as stream:
            lines = stream.iter_lines()
            next(lines)
            assert value(scrape(service), "bgpo_event_streams") == 1


class TestService:
    @pytest.fixture
    def busy(self, database_url: str, start_service: Callable[..., Any]) -> Any:
        """On each kind of database: one job runs, one waits, two workers are there and one is gone."""
        service = start_service(database_url=database_url)
        running = service.create()["id"]
        service.claim(running)
        service.create(rl={"priority": "high", "resources": {"gpus": 2}})
        with service.ctx.db.transaction() as session:
            for number, state in enumerate(("idle", "unfit", "busy")):
                slot = Slot(f"worker-{number}", devices=("cpu", "cpu"))
                workers.beat(session, slot, pid=1, device="cpu", version="1", state=state)  # type: ignore[arg-type]
            session.execute(sa.text("UPDATE workers SET last_seen = last_seen - 3600 WHERE id = 'worker-2'"))
            session.execute(sa.text("UPDATE jobs SET queued_at = queued_at - 500 WHERE state = 'queued'"))
            session.execute(sa.text("UPDATE jobs SET last_step = 7 WHERE state = 'running'"))
        return service, running

    def test_queue_workers_and_jobs(self, busy: Any) -> None:
        service, running = busy
        found = scrape(service)
        assert value(found, "bgpo_database_up") == 1
        assert value(found, "bgpo_jobs", state="running") == value(found, "bgpo_jobs", state="queued") == 1
        assert value(found, "bgpo_jobs", state="failed") == 0
        assert value(found, "bgpo_queue_jobs", gpu_type="any", gpus="2", priority="1") == 1
        assert 500 <= (value(found, "bgpo_queue_oldest_seconds") or 0) < 600
        assert value(found, "bgpo_workers", gpu_type="cpu", state="idle") == 1
        assert value(found, "bgpo_workers", gpu_type="cpu", state="unfit") == 1
        assert value(found, "bgpo_workers", gpu_type="cpu", state="busy") is None
        assert value(found, "bgpo_workers_gone") == 1
        assert value(found, "bgpo_attempts", outcome="running", error="") == 1
        labels = {"job_id": running, "project_id": "proj_default"}
        assert value(found, "bgpo_running_job_step", **labels) == 7
        assert value(found, "bgpo_running_job_steps", **labels) == 20

    def test_what_trainers_measured(self, busy: Any) -> None:
        """Of the newest step and a fixed set of names, so that no grader's name makes a series."""
        service, running = busy
        labels = {"job_id": running, "project_id": "proj_default"}
        assert value(scrape(service), "bgpo_running_job_reward", **labels) is None
        values = {"reward_mean": 0.5, "tokens_per_second": 900.0, "peak_memory_bytes": 1e9, "seconds_rollout": 3.0}
        told = [
            (6, "train", {**values, "reward_mean": 0.25, "seconds_loss": 4.0}),
            (7, "train", values | {"seconds_grader/mine": 1.0, "reward/mine": 1.0}),
            (8, "validation", {"reward_mean": 0.75}),
        ]
        with service.ctx.db.transaction() as session:
            for step, split, of_step in told:
                assert metrics.upsert(session, running, 1, step, split, of_step)
        found = scrape(service)
        assert value(found, "bgpo_running_job_reward", **labels) == 0.5
        assert value(found, "bgpo_running_job_tokens_per_second", **labels) == 900
        assert value(found, "bgpo_running_job_memory_bytes", **labels) == 1e9
        assert value(found, "bgpo_running_job_phase_seconds", **labels, phase="rollout") == 3
        assert {dict(key[1])["phase"] for key in found if key[0] == "bgpo_running_job_phase_seconds"} == {"rollout"}
        with service.http() as http:
            assert "mine" not in http.get("/metrics").text

    def test_without_its_database(self, service: Any) -> None:
        with service.ctx.db.engine.connect() as connection:
            connection.execute(sa.text("DROP TABLE workers"))
            connection.commit()
        found = scrape(service)
        assert value(found, "bgpo_database_up") == 0
        assert value(found, "bgpo_requests_in_flight") == 1
        assert value(found, "bgpo_workers_gone") is None
