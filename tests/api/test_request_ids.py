"""One id from the response to the job, the worker and the trainer's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.repositories import claims
from migrations import upgrade
from tests.running import running, wait_for_job
from worker.workdir import WorkDir

JOBS = "/v1/fine_tuning/jobs"


def create(service: Any, **headers: str) -> tuple[str, str]:
    """A job; its id and that of the request."""
    file_id = service.upload(service.rows()).json()["id"]
    with service.http() as http:
        response = http.post(JOBS, json=service.body(training_file=file_id), headers=headers)
    return response.json()["id"], response.headers["x-request-id"]


def first_event(service: Any, job_id: str) -> dict[str, Any]:
    with service.http() as http:
        found: dict[str, Any] = http.get(f"{JOBS}/{job_id}/events?limit=100").json()["data"][-1]
    return found


def test_the_job_remembers_the_request(service: Any, tmp_path: Path) -> None:
    job_id, request_id = create(service)
    assert request_id.startswith("req_")
    assert first_event(service, job_id)["data"] == {"request_id": request_id}
    with service.ctx.db.transaction() as session:
        claim = claims.claim(session, job_id, "worker-1", 60)
    assert claim is not None
    assert claim.origin == {"request_id": request_id}
    folder = WorkDir(service.ctx.settings, claim)
    folder.create()
    assert folder.log.read_text() == f"attempt 1 of {job_id}, made by {request_id}\n"


def test_retries_and_clones_have_their_own(service: Any) -> None:
    job_id, request_id = create(service)
    with service.http() as http:
        assert http.post(f"{JOBS}/{job_id}/cancel").status_code == 200
        for action in ("retry", "clone"):
            response = http.post(f"{JOBS}/{job_id}/{action}")
            shown = first_event(service, response.json()["id"])["data"]["request_id"]
            assert shown == response.headers["x-request-id"] != request_id


@pytest.mark.parametrize(
    ("given", "kept"),
    [("trace-1.a:b_c", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("a\x7f", False)],
)
def test_a_clients_own_id_stands_beside_ours(service: Any, given: str, kept: bool) -> None:
    job_id, request_id = create(service, **{"x-client-request-id": given})
    wanted = {"request_id": request_id} | ({"client_request_id": given} if kept else {})
    assert first_event(service, job_id)["data"] == wanted


def test_a_clients_x_request_id_is_not_ours(service: Any) -> None:
    _, request_id = create(service, **{"x-request-id": "req_forged"})
    assert request_id != "req_forged"


@pytest.mark.slow
def test_the_workers_log_has_it(tmp_path: Path, redis_url: str) -> None:
    upgrade(f"sqlite:///{tmp_path / 'bgpo.db'}")
    with running(tmp_path, {"BGPO_LOG_FORMAT": "json", "BGPO_REDIS_URL": redis_url}) as client:
        rows = b'{"messages": [{"role": "user", "content": "a"}]}\n' * 10
        file = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": rows}).json()
        grader = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}
        method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
        response = client.post(JOBS, json={"model": "tiny", "training_file": file["id"], "method": method})
        wait_for_job(client, response.json()["id"], "succeeded")
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines() if line.startswith("{")]
    of_job = [line for line in lines if line.get("job_id") == response.json()["id"]]
    assert of_job
    assert {line["request_id"] for line in of_job} == {response.headers["x-request-id"]}
