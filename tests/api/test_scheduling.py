"""When and where jobs run, over HTTP: priorities, resources, limits, webhooks, the queue and the workers in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.errors import InvalidRequest
from jobs.repositories import jobs, workers
from jobs.repositories.jobs import JobError
from jobs.resources import Slot
from jobs.services import scheduling
from jobs.wire.request import Scheduling

URL = "/v1/fine_tuning/jobs"
SECRET = "whsec_" + "a2V5" * 11 + "a2U="


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def connect(service: Any, worker_id: str, gpu_type: str = "cpu", gpus: int = 1, **values: Any) -> None:
    """A worker reports itself."""
    devices = tuple(f"{gpu_type}-{index}" for index in range(gpus))
    slot = Slot(worker_id, host="host-1", gpu_type=gpu_type, devices=devices)
    with service.ctx.db.transaction() as session:
        workers.beat(session, slot, pid=7, device=gpu_type, version="1", **values)


class TestRequest:
    def test_what_is_asked_is_shown_and_kept(self, start_service: Callable[..., Any]) -> None:
        service = start_service(webhook_secret=SECRET)
        rl = {
            "priority": "high",
            "resources": {"gpus": 2, "gpu_type": "h200", "max_runtime_s": 3600},
            "webhook_url": "https://example.com/hook",
        }
        job = service.create(rl=rl)
        assert {name: job["rl"][name] for name in rl} == rl
        for name in ("source_job", "pause_reason", "failure"):
            assert job["rl"][name] is None
        with service.http() as http:
            assert http.get(f"{URL}/{job['id']}").json() == job
        claim = service.claim(job["id"])
        assert (claim.gpus, claim.gpu_type) == (2, "h200")
        assert 3500 < claim.runtime_left_s <= 3600

    def test_what_is_not_asked_has_its_default(self, service: Any) -> None:
        shown = service.create()["rl"]
        assert (shown["priority"], shown["webhook_url"]) == ("normal", None)
        assert shown["resources"] == {"gpus": 1, "gpu_type": None, "max_runtime_s": None}

    @pytest.mark.parametrize(
        ("rl", "param", "code", "words"),
        [
            ({"priority": "urgent"}, "rl.priority", "invalid_value", "high"),
            ({"resources": {"gpus": 3}}, "rl.resources.gpus", "invalid_value", "at most 2"),
            ({"resources": {"gpu_type": "NVIDIA H200"}}, "rl.resources.gpu_type", "invalid_value", "pattern"),
            ({"resources": {"max_runtime_s": -1}}, "rl.resources.max_runtime_s", "invalid_value", "greater than 0"),
            ({"resources": {"hours": 1}}, "rl.resources.hours", "unknown_parameter", "hours"),
            ({"webhook_url": "https://example.com"}, "rl.webhook_url", "invalid_value", "BGPO_WEBHOOK_SECRET"),
        ],
    )
    def test_faults(self, start_service: Callable[..., Any], rl: Any, param: str, code: str, words: str) -> None:
        service = start_service(max_gpus=2)
        body = service.body(training_file=service.upload(service.rows()).json()["id"], rl=rl)
        with service.http() as http:
            error = error_of(http.post(URL, json=body))
        assert (error["param"], error["code"]) == (param, code)
        assert words in error["message"]

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.com/",
            "https://example.com:444/",
            "ftp://example.com/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://a:b@example.com/",
        ],
    )
    def test_webhooks_go_only_where_they_may(self, start_service: Callable[..., Any], url: str) -> None:
        service = start_service(webhook_secret=SECRET)
        body = service.body(training_file=service.upload(service.rows()).json()["id"], rl={"webhook_url": url})
        with service.http() as http:
            error = error_of(http.post(URL, json=body))
            assert error["param"] == "rl.webhook_url"
            assert http.get(URL).json()["data"] == []

    def test_an_operator_may_allow_private_receivers(self, start_service: Callable[..., Any]) -> None:
        service = start_service(webhook_secret=SECRET, webhook_allow_private=True)
        assert scheduling.columns(service.ctx, Scheduling(webhook_url="http://127.0.0.1:9/"))["webhook_url"]
        with pytest.raises(InvalidRequest, match=r"rl\.webhook_url"):
            scheduling.columns(service.ctx, Scheduling(webhook_url="file:///etc/passwd"))


class TestLimit:
    def test_more_waiting_jobs_than_allowed(self, start_service: Callable[..., Any], database_url: str) -> None:
        service = start_service(max_queued_jobs=2, database_url=database_url)
        file_id = service.upload(service.rows()).json()["id"]
        first, second = (service.create(training_file=file_id)["id"] for _ in range(2))
        with service.http() as http:

            def full(path: str, body: Any = None) -> bool:
                response = http.post(f"{URL}{path}", json=body)
                if response.status_code == 200:
                    return False
                error = error_of(response, 429)
                assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
                assert response.headers["x-should-retry"] == "false"
                assert "2 jobs wait" in error["message"]
                return True

            assert full("", service.body(training_file=file_id))
            assert full(f"/{first}/clone")
            service.claim(first)  # no longer waits
            assert not full(f"/{first}/clone")
            http.post(f"{URL}/{first}/cancel")
            assert full(f"/{first}/retry")
            http.post(f"{URL}/{second}/pause")
            assert not full(f"/{first}/retry")
            assert full(f"/{second}/resume")
            assert http.get(f"{URL}/{second}").json()["status"] == "paused"
            http.post(f"{URL}/{http.get(URL).json()['first_id']}/cancel")
            assert not full(f"/{second}/resume")
            assert not full(f"/{second}/resume")  # it waits already

    def test_a_repeated_request_is_no_further_job(self, start_service: Callable[..., Any]) -> None:
        service = start_service(max_queued_jobs=1)
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        with service.http(headers={"idempotency-key": "k"}) as http:
            made = http.post(URL, json=body).json()["id"]
            assert http.post(URL, json=body).json()["id"] == made


class TestQueue:
    def test_position_and_reason(self, start_service: Callable[..., Any], database_url: str) -> None:
        service = start_service(database_url=database_url)
        file_id = service.upload(service.rows()).json()["id"]
        plain = service.create(training_file=file_id)
        assert plain["rl"]["queue_position"] == 1
        assert "No worker is connected" in plain["rl"]["wait_reason"]
        connect(service, "worker-1")
        urgent = service.create(training_file=file_id, rl={"priority": "high"})["id"]
        large = service.create(training_file=file_id, rl={"resources": {"gpus": 4, "gpu_type": "h200"}})["id"]
        with service.http() as http:

            def place(job_id: str) -> tuple[int | None, str | None]:
                shown = http.get(f"{URL}/{job_id}").json()["rl"]
                return shown["queue_position"], shown["wait_reason"]

            assert place(urgent)[0] == 1
            assert place(plain["id"])[0] == 2
            assert "1 job ahead" in (place(plain["id"])[1] or "")
            assert "4 accelerators of type h200" in (place(large)[1] or "")
            found = http.get("/v1/fine_tuning/queue").json()
            assert {entry["job"] for entry in found["waiting"]} == {plain["id"], urgent, large}
            for entry in found["waiting"]:
                assert (entry["position"], entry["reason"]) == place(entry["job"])
            assert found["waiting"][0]["job"] == urgent
            assert (found["waiting"][0]["priority"], found["waiting"][0]["status"]) == ("high", "queued")
            assert found["running"] == []
            assert found["queued_total"] == 3
            assert found["slots"] == [{"gpu_type": "cpu", "gpus": 1, "total": 1, "busy": 0, "out": 0}]
            # Lists stay cheap.
            assert {job["rl"]["queue_position"] for job in http.get(URL).json()["data"]} == {None}

            service.claim(urgent)
            connect(service, "worker-1", state="busy", job_id=urgent)
            connect(service, "worker-2", state="unfit", problem="the disk is full")
            found = http.get("/v1/fine_tuning/queue").json()
            assert [entry["job"] for entry in found["running"]] == [urgent]
            assert (found["running"][0]["attempt"], found["running"][0]["total_steps"]) == (1, 20)
            assert found["slots"] == [{"gpu_type": "cpu", "gpus": 1, "total": 2, "busy": 1, "out": 1}]
            assert place(urgent) == (None, None)
            http.post(f"{URL}/{plain['id']}/pause")
            entry = http.get("/v1/fine_tuning/queue").json()["waiting"][-1]
            assert (entry["job"], entry["position"], entry["status"]) == (plain["id"], None, "paused")

    def test_a_job_the_service_paused_says_why(self, service: Any) -> None:
        job = service.create()
        claim = service.claim(job["id"])
        with service.ctx.db.transaction() as session:
            jobs.finish(session, claim.job_id, claim.epoch, "paused", error=JobError("disk_full", "No space is left."))
        with service.http() as http:
            shown = http.get(f"{URL}/{job['id']}").json()
            assert shown["status"] == "paused"
            assert shown["rl"]["pause_reason"]["code"] == "disk_full"
            assert shown["rl"]["pause_reason"]["message"].startswith("No space is left.")
            assert (shown["error"], shown["rl"]["failure"]) == (None, None)
            assert http.post(f"{URL}/{job['id']}/resume").json()["rl"]["pause_reason"] is None


class TestWorkers:
    def test_the_registry(self, service: Any) -> None:
        connect(service, "worker-1", gpu_type="h200", gpus=2, state="unfit", problem="the disk is full")
        with service.http() as http:
            (worker,) = http.get("/v1/organization/workers").json()["data"]
        expected = {"id": "worker-1", "host": "host-1", "gpu_type": "h200", "gpus": 2, "state": "unfit", "pid": 7}
        assert {name: worker[name] for name in expected} == expected
        assert (worker["devices"], worker["problem"]) == (["h200-0", "h200-1"], "the disk is full")
        assert worker["last_seen"] >= worker["started_at"] > 0

    @pytest.mark.parametrize(
        ("keys", "given", "status"),
        [
            ({}, None, 200),  # from this machine
            ({"api_key": "sk-1"}, "sk-1", 403),
            ({"api_key": "sk-1"}, "sk-2", 401),
            ({"api_key": "sk-1", "admin_key": "sk-a"}, "sk-a", 200),
            ({"api_key": "sk-1", "admin_key": "sk-a"}, "sk-1", 403),
            ({"api_key": "sk-1", "admin_key": "sk-a"}, None, 401),
            ({"admin_key": "sk-a"}, "sk-a", 200),
            ({"admin_key": "sk-a"}, "any", 401),
        ],
    )
    def test_it_is_for_administrators(
        self, start_service: Callable[..., Any], keys: dict[str, str], given: str | None, status: int
    ) -> None:
        service = start_service(**keys)
        headers = {"authorization": f"Bearer {given}"} if given else {}
        with service.http(headers=headers) as http:
            response = http.get("/v1/organization/workers")
            assert response.status_code == status, response.text
            if status == 403:
                assert error_of(response, 403)["code"] == "insufficient_permissions"
        if keys.get("api_key") and given == "sk-a":
            with service.http(headers=headers) as http:
                error_of(http.get("/v1/files"), 403)  # it opens nothing else

    def test_no_page_of_another_site_reads_it(self, service: Any) -> None:
        with service.http(headers={"origin": "https://evil.example"}) as http:
            error_of(http.get("/v1/organization/workers"), 403)
