"""`bgpo validate`, `bgpo estimate` and `bgpo jobs` against a running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.failures import JobError
from jobs.repositories import logs
from tests.cli.test_graders import bgpo
from tests.service import service, start_service

__all__ = ["service", "start_service"]


def files_of(service: Any) -> list[Any]:
    with service.http() as http:
        found: list[Any] = http.get("/v1/files").json()["data"]
    return found


def test_validate_and_estimate(service: Any, tmp_path: Path) -> None:
    job, train = tmp_path / "job.json", tmp_path / "train.jsonl"
    body = service.body()
    del body["training_file"]
    job.write_text(json.dumps(body))
    train.write_bytes(service.rows())
    done = bgpo(service, "validate", job, "--train", train)
    note, end = done.stdout.splitlines()
    assert note.startswith("info   Grader 'same' on the first 3 rows")
    assert end == "valid: 20 steps"
    estimate = bgpo(service, "estimate", job, "--train", train).stdout
    assert [line.split()[:3] for line in estimate.splitlines() if line.startswith("steps")] == [["steps", "20", "20"]]
    job.write_text(json.dumps(body | {"model": "gpt", "rl": {"resources": {"gpus": 99}}}))
    wrong = bgpo(service, "validate", job, "--train", train, status=1)
    assert "model: The model 'gpt' does not exist. (model_not_found)" in wrong.stdout
    assert "rl.resources.gpus: " in wrong.stdout
    assert wrong.stderr == "error: the job would be refused: 2 to change\n"
    assert files_of(service) == []


def test_wait_spec_logs_delete(service: Any) -> None:
    job_id = service.create()["id"]
    late = bgpo(service, "jobs", "wait", job_id, "--timeout", "0", status=1)
    assert f"{job_id} is queued after 0 seconds" in late.stderr
    claim = service.claim(job_id)
    with service.ctx.db.transaction() as session:
        logs.append(session, job_id, claim.epoch, 1, [("warn", "it is hot"), ("info", "done")])
    service.finish(claim, "failed", JobError("oom", "No memory."))
    assert "No memory" in bgpo(service, "jobs", "wait", job_id, status=1).stderr
    assert json.loads(bgpo(service, "jobs", "spec", job_id).stdout)["job"] == job_id
    assert json.loads(bgpo(service, "jobs", "spec", job_id, "--run").stdout)["method"]["max_steps"] == 20
    assert bgpo(service, "jobs", "logs", job_id).stdout.splitlines()[0].endswith("warn   it is hot")
    assert bgpo(service, "jobs", "logs", job_id, "--tail", "1").stdout.splitlines()[0].endswith("info   done")
    assert bgpo(service, "jobs", "delete", job_id).stdout == f"deleted {job_id}\n"
    assert "No such fine-tuning job" in bgpo(service, "jobs", "delete", job_id, status=1).stderr
