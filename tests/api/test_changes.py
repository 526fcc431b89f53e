"""Changing, deleting and waiting for jobs over HTTP, and the filters of their list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from jobs.repositories import metrics
from jobs.tables import DEFAULT_PROJECT, Event, Job
from tests.service import Service

URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each database."""
    return start_service(database_url=database_url)


def error_of(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


class TestUpdate:
    def test_metadata_is_replaced_and_removed_also_of_an_ended_job(self, service: Service) -> None:
        job = service.create(metadata={"a": "1", "b": "2"})
        service.claim(job["id"])  # of jobs that run, answers are kept
        with service.http() as http:
            for given, shown in (({"c": "3"}, {"c": "3"}), ({}, None), ({"d": ""}, {"d": ""}), (None, None)):
                assert http.get(f"{URL}/{job['id']}").status_code == 200
                assert http.patch(f"{URL}/{job['id']}", json={"metadata": given}).json()["metadata"] == shown
                assert http.get(f"{URL}/{job['id']}").json()["metadata"] == shown
            http.post(f"{URL}/{job['id']}/cancel")
            assert http.patch(f"{URL}/{job['id']}", json={"metadata": {"late": "yes"}}).status_code == 200
            assert http.get(f"{URL}/{job['id']}").json()["metadata"] == {"late": "yes"}

    def test_what_is_left_out_stays(self, service: Service) -> None:
        job = service.create(metadata={"a": "1"}, rl={"checkpointing": {"keep_last": 7}})
        with service.http() as http:
            rl = {"priority": "high", "checkpointing": {"keep_best": False}}
            changed = http.patch(f"{URL}/{job['id']}", json={"rl": rl}).json()
            assert (changed["metadata"], changed["rl"]["priority"]) == ({"a": "1"}, "high")
            assert changed["rl"]["checkpointing"] == job["rl"]["checkpointing"] | {"keep_best": False}
            assert http.patch(f"{URL}/{job['id']}", json={}).json() == changed
            told = http.get(f"{URL}/{job['id']}/events", params={"limit": 1}).json()["data"][0]["message"]
        assert told == "Job changed: priority high, keep_best false"

    def test_a_higher_priority_moves_it_ahead(self, service: Service) -> None:
        first, second = service.create()["id"], service.create()["id"]
        with service.http() as http:
            changed = http.patch(f"{URL}/{second}", json={"rl": {"priority": "high"}}).json()
            assert changed["rl"]["queue_position"] == 1
            assert http.get(f"{URL}/{first}").json()["rl"]["queue_position"] == 2

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({"model": "other"}, "model", "unknown_parameter"),
            ({"rl": {"resources": {"gpus": 2}}}, "rl.resources", "unknown_parameter"),
            ({"metadata": {"k" * 65: "v"}}, None, "invalid_value"),
            ({"metadata": {"k": "v" * 513}}, "metadata.k", "invalid_value"),
            ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "invalid_value"),
            ({"rl": {"priority": "urgent"}}, "rl.priority", "invalid_value"),
            ({"rl": {"checkpointing": {"keep_last": 0}}}, "rl.checkpointing.keep_last", "invalid_value"),
        ],
    )
    def test_faults(self, service: Service, body: dict[str, Any], param: str | None, code: str) -> None:
        job = service.create()
        with service.http() as http:
            error = error_of(http.patch(f"{URL}/{job['id']}", json=body))
            assert error["code"] == code
            assert param is None or error["param"] == param
            assert http.get(f"{URL}/{job['id']}").json() == job

    def test_an_ended_job_keeps_its_scheduling(self, service: Service) -> None:
        job = service.create()
        with service.http() as http:
            http.post(f"{URL}/{job['id']}/cancel")
            body = {"metadata": {"a": "1"}, "rl": {"priority": "high"}}
            error = error_of(http.patch(f"{URL}/{job['id']}", json=body))
            assert (error["code"], error["param"]) == ("invalid_state", "rl")
            assert http.get(f"{URL}/{job['id']}").json()["metadata"] is None
            assert error_of(http.patch(f"{URL}/ftjob-none", json={}), 404)["param"] == "id"


class TestDelete:
    def ended(self, service: Service, folder: Path) -> tuple[str, str]:
        """A failed job with a checkpoint and something of everything, and the checkpoint."""
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        job_id = service.create(metadata={"a": "1"})["id"]
        claim = service.claim(job_id)
        checkpoint = service.checkpoint(claim, 2, folder)
        with service.ctx.db.transaction() as session:
            values = {"loss": 1.0, "judge_tokens/critic/prompt": 70.0}
            given: dict[str, Any] = {"step": 1, "split": "train", "values": values, "message": "Step 1/20", "data": {}}
            metrics.record_step(session, job_id, claim.epoch, **given)
        with service.http() as http:
            http.post(f"{URL}/{job_id}/cancel")
            assert error_of(http.delete(f"{URL}/{job_id}"))["code"] == "invalid_state"  # its worker still stops
        service.finish(claim, "cancelled")
        return job_id, checkpoint

    def test_all_of_it_goes_but_what_it_used(self, service: Service, tmp_path: Path) -> None:
        job_id, checkpoint = self.ended(service, tmp_path / "c")
        other = service.create()["id"]
        with service.http() as http:
            used = http.get("/v1/usage").json()["jobs"]
            assert http.get(f"{URL}/{job_id}").status_code == 200
            assert http.delete(f"{URL}/{job_id}").json() == {"id": job_id, "object": "fine_tuning.job", "deleted": True}
            for path in ("", "/events", "/metrics", "/samples", "/checkpoints", "/attempts", "/events/stream", "/wait"):
                assert error_of(http.get(f"{URL}/{job_id}{path}"), 404)["param"] == "id", path
            for wish in ("cancel", "pause", "resume", "retry", "clone"):
                error_of(http.post(f"{URL}/{job_id}/{wish}"), 404)
            error_of(http.patch(f"{URL}/{job_id}", json={"metadata": {}}), 404)
            error_of(http.delete(f"{URL}/{job_id}"), 404)
            error_of(http.get(f"/v1/fine_tuning/checkpoints/{checkpoint}"), 404)
            assert [job["id"] for job in http.get(URL).json()["data"]] == [other]
            assert http.get("/v1/usage").json()["jobs"] == used
            assert [entry["judge_tokens"] for entry in used] == [70]
        assert list(service.ctx.store.walk("checkpoints")) == []
        with service.ctx.db.read() as session:
            assert session.scalars(sa.select(Event.id).where(Event.job_id == job_id)).all() == []
            row = session.get_one(Job, job_id)
            assert (row.request, row.tags, row.recipe, row.project_id) == (None, None, {}, DEFAULT_PROJECT)

    def test_its_idempotency_key_is_free_again(self, service: Service) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        with service.http(headers={"idempotency-key": "once"}) as http:
            first = http.post(URL, json=body).json()["id"]
            assert http.post(URL, json=body).json()["id"] == first
            http.post(f"{URL}/{first}/cancel")
            http.delete(f"{URL}/{first}")
            assert http.post(URL, json=body).json()["id"] != first

    def test_unfinished_pinned_and_used_ones_stay(self, service: Service, tmp_path: Path) -> None:
        job_id, checkpoint = self.ended(service, tmp_path / "c")
        url = f"/v1/fine_tuning/checkpoints/{checkpoint}"
        with service.http() as http:
            http.patch(url, json={"pinned": True})
            assert error_of(http.delete(f"{URL}/{job_id}"))["code"] == "checkpoint_pinned"
            http.patch(url, json={"pinned": False})
            successor = http.post(f"{URL}/{job_id}/retry").json()["id"]
            assert error_of(http.delete(f"{URL}/{job_id}"))["code"] == "checkpoint_in_use"
            error = error_of(http.delete(f"{URL}/{successor}"))
            assert (error["code"], "queued" in error["message"]) == ("invalid_state", True)
            assert http.get(url).status_code == 200
            http.post(f"{URL}/{successor}/cancel")
            started = service.create(model=checkpoint)["id"]
            assert error_of(http.delete(f"{URL}/{job_id}"))["code"] == "checkpoint_in_use"
            assert http.get(f"{URL}/{started}/spec").json()["lineage"][0]["checkpoint"] == checkpoint
            http.post(f"{URL}/{started}/cancel")
            assert http.delete(f"{URL}/{job_id}").status_code == 200
            assert http.get(f"{URL}/{successor}").json()["rl"]["source_job"] == job_id


class TestWait:
    def test_it_returns_when_the_job_is_over(self, service: Service) -> None:
        job_id = service.create()["id"]
        answers: list[httpx2.Response] = []

        def wait() -> None:
            with service.http() as http:
                answers.append(http.get(f"{URL}/{job_id}/wait", params={"timeout": 25}))

        threads = [threading.Thread(target=wait) for _ in range(60)]  # more than there are threads for requests
        for thread in threads:
            thread.start()
        with service.http() as http:
            assert http.post(f"{URL}/{job_id}/cancel").status_code == 200
            for thread in threads:
                thread.join(25)
            expected = http.get(f"{URL}/{job_id}").json()
        assert [answer.json() for answer in answers] == [expected] * 60

    def test_it_returns_the_job_as_it_is_after_the_timeout(self, service: Service) -> None:
        job = service.create()
        with service.http() as http:
            assert http.get(f"{URL}/{job['id']}/wait", params={"timeout": 0.1}).json() == job
            assert error_of(http.get(f"{URL}/{job['id']}/wait", params={"timeout": 301}))["param"] == "timeout"
            error_of(http.get(f"{URL}/ftjob-none/wait"), 404)

    def test_it_ends_with_the_server(self, service: Service) -> None:
        job_id = service.create()["id"]
        answers: list[int] = []

        def wait() -> None:
            with service.http() as http:
                answers.append(http.get(f"{URL}/{job_id}/wait", params={"timeout": 300}).status_code)

        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 20
        while not service.server.server_state.tasks and time.monotonic() < deadline:
            thread.join(0.02)
        service.server.stop()
        thread.join(20)
        assert answers == [200]


def test_filters_of_the_list(service: Service) -> None:
    queued, cancelled, running = (service.create(metadata={"n": name})["id"] for name in "abc")
    service.claim(running)
    with service.http() as http:
        http.post(f"{URL}/{cancelled}/cancel")

        def found(**params: Any) -> list[str]:
            return [job["id"] for job in http.get(URL, params=params).json()["data"]]

        assert found(status="queued") == [queued]
        assert found(status="queued,running") == [running, queued]
        assert found(status=["cancelled", "queued"]) == [cancelled, queued]
        assert found(status="succeeded") == []
        assert found(model="tiny") == [running, cancelled, queued]
        assert found(model="other") == []
        assert found(status="queued", **{"metadata[n]": "b"}) == []
        http.post(f"{URL}/{running}/cancel")  # its worker still stops, and clients see it cancelled
        assert found(status="cancelled") == [running, cancelled]
        assert http.get(URL, params={"status": "cancelled", "limit": 1}).json()["has_more"]
        error = error_of(http.get(URL, params={"status": "done"}))
        assert (error["param"], "succeeded" in error["message"]) == ("status", True)
