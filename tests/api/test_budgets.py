"""`rl.budget` over HTTP: asked for, shown, used up, raised; and with a trainer, a judge and quotas in tests/e2e."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from jobs.db import now
from jobs.services.quotas import hold_budgets
from jobs.tables import Attempt
from tests.service import Service

URL = "/v1/fine_tuning/jobs"
NONE = {"gpu_seconds": None, "judge_tokens": None, "on_exceed": "pause"}


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each database."""
    return start_service(database_url=database_url)


def error_of(response: httpx2.Response, status: int = 400) -> tuple[str, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    return error["code"], error["param"]


def overrun(service: Service, job_id: str, seconds: float) -> list[str]:
    with service.ctx.db.transaction() as session:
        ran = {"started_at": now() - seconds, "ended_at": now()}
        session.execute(sa.update(Attempt).where(Attempt.job_id == job_id).values(**ran))
        return hold_budgets(session)


def test_it_is_shown_and_no_job_has_one_by_itself(service: Service) -> None:
    assert service.create()["rl"]["budget"] == NONE
    job = service.create(rl={"budget": {"gpu_seconds": 100, "on_exceed": "stop"}})
    assert job["rl"]["budget"] == NONE | {"gpu_seconds": 100, "on_exceed": "stop"}
    job = service.create(rl={"budget": {"judge_tokens": 5}})
    assert job["rl"]["budget"] == NONE | {"judge_tokens": 5}


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"gpu_seconds": 0}, "rl.budget.gpu_seconds", "invalid_value"),
        ({"judge_tokens": 1.5}, "rl.budget.judge_tokens", "invalid_value"),
        ({"on_exceed": "fail"}, "rl.budget.on_exceed", "invalid_value"),
        ({"dollars": 5}, "rl.budget.dollars", "unknown_parameter"),
    ],
)
def test_faults(service: Service, given: dict[str, Any], param: str, code: str) -> None:
    file_id = service.upload(service.rows()).json()["id"]
    job = service.create(training_file=file_id)
    with service.http() as http:
        body = service.body(training_file=file_id, rl={"budget": given})
        assert error_of(http.post(URL, json=body)) == (code, param)
        assert error_of(http.patch(f"{URL}/{job['id']}", json={"rl": {"budget": given}})) == (code, param)


def test_used_up_it_pauses_and_raised_it_goes_on(service: Service, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.safetensors").write_bytes(b"weights")
    job_id = service.create(rl={"budget": {"gpu_seconds": 100, "judge_tokens": 7}})["id"]
    url = f"{URL}/{job_id}"
    claim = service.claim(job_id)
    assert overrun(service, job_id, 120) == [job_id]
    service.checkpoint(claim, 2, tmp_path / "c")
    service.finish(claim, "paused")
    with service.http() as http:
        job = http.get(url).json()
        assert (job["status"], job["rl"]["pause_reason"]["code"]) == ("paused", "budget_exceeded")
        assert "120 of the 100 accelerator-seconds" in job["rl"]["pause_reason"]["message"]
        refused = http.post(f"{url}/resume")
        assert error_of(refused, 429) == ("insufficient_quota", "rl.budget.gpu_seconds")
        assert refused.headers["x-should-retry"] == "false"
        changed = http.patch(url, json={"rl": {"budget": {"gpu_seconds": 120.0}}}).json()
        assert changed["rl"]["budget"] == NONE | {"gpu_seconds": 120, "judge_tokens": 7}
        assert http.post(f"{url}/resume").status_code == 429
        changed = http.patch(url, json={"rl": {"budget": {"gpu_seconds": None, "on_exceed": "stop"}}}).json()
        assert changed["rl"]["budget"] == NONE | {"judge_tokens": 7, "on_exceed": "stop"}
        told = http.get(f"{url}/events", params={"limit": 1}).json()["data"][0]["message"]
        assert told == "Job changed: budget gpu_seconds unlimited, budget on_exceed stop"
        assert http.post(f"{url}/resume").json()["status"] == "queued"
    assert service.claim(job_id).resume_checkpoint_id is not None


def test_stopped_it_has_succeeded_and_says_why(service: Service, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.safetensors").write_bytes(b"weights")
    job_id = service.create(rl={"budget": {"gpu_seconds": 100, "on_exceed": "stop"}})["id"]
    claim = service.claim(job_id)
    overrun(service, job_id, 120)
    service.checkpoint(claim, 2, tmp_path / "c")
    service.finish(claim, "paused")
    with service.http() as http:
        job = http.get(f"{URL}/{job_id}").json()
        assert (job["status"], job["rl"]["stop_reason"]) == ("succeeded", "budget_exceeded")
        assert job["rl"]["pause_reason"] is None
        assert http.get(f"/v1/models/{job['fine_tuned_model']}").status_code == 200
        changed = http.patch(f"{URL}/{job_id}", json={"rl": {"budget": {"gpu_seconds": 5}}})
        assert error_of(changed) == ("invalid_state", "rl")


def test_a_retry_and_a_clone_have_the_budget_anew(service: Service) -> None:
    job_id = service.create(rl={"budget": {"gpu_seconds": 100, "judge_tokens": 7}})["id"]
    service.claim(job_id)
    with service.http() as http:
        http.post(f"{URL}/{job_id}/cancel")
        again = http.post(f"{URL}/{job_id}/retry", json={"rl": {"budget": {"judge_tokens": 9}}}).json()
        assert again["rl"]["budget"] == NONE | {"gpu_seconds": 100, "judge_tokens": 9}
        same = http.post(f"{URL}/{again['id']}/clone").json()
        assert same["rl"]["budget"] == again["rl"]["budget"]
        free = http.post(f"{URL}/{job_id}/clone", json={"rl": {"budget": None}}).json()
        assert free["rl"]["budget"] == NONE
    assert overrun(service, job_id, 1000) == []
