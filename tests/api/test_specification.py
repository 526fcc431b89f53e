"""The specification of a job over HTTP, and running from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bgpo.spec import parse_run_spec
from jobs.repositories import workers
from jobs.resources import Slot
from jobs.wire.graders import HIDDEN
from tests.service import Service

URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each database."""
    return start_service(database_url=database_url)


def test_it_says_what_the_job_stood_on(service: Service, tmp_path: Path) -> None:
    content = service.rows()
    file_id = service.upload(content).json()["id"]
    job = service.create(training_file=file_id, validation_file=file_id, seed=11, rl={"eval": {"interval": 5}})
    with service.ctx.db.transaction() as session:
        workers.beat(session, Slot("worker-1"), pid=1, device="cpu", version="1.2.3")
    service.claim(job["id"])
    with service.http() as http:
        found = http.get(f"{URL}/{job['id']}/spec").json()
        assert http.get(f"{URL}/ftjob-none/spec").status_code == 404
    assert (found["job"], found["seed"], found["run"]["seed"]) == (job["id"], 11, 11)
    expected = {"id": file_id, "filename": "train.jsonl", "bytes": len(content)}
    expected["sha256"] = hashlib.sha256(content).hexdigest()
    assert found["files"] == {"training_file": expected, "validation_file": expected}
    assert found["base_model"] == {
        "id": "tiny",
        "config_sha256": hashlib.sha256(b"{}").hexdigest(),
        "files": [{"path": "config.json", "bytes": 2}],
    }
    assert found["attempts"] == [{"number": 1, "worker_version": "1.2.3", "devices": None, "resumed_step": None}]
    paths = {name: str(tmp_path / name) for name in ("model", "train_data", "validation_data", "output_dir")}
    (tmp_path / "run.json").write_text(json.dumps(found["run"] | paths))
    spec = parse_run_spec(tmp_path / "run.json")
    assert (spec.method.max_steps, spec.evaluation.interval, spec.train_data) == (20, 5, paths["train_data"])


def test_what_is_gone_is_said_to_be(service: Service) -> None:
    job = service.create()
    with service.http() as http:
        http.post(f"{URL}/{job['id']}/cancel")
        assert http.delete(f"/v1/files/{job['training_file']}").status_code == 200
        (service.ctx.settings.model_root / "tiny" / "config.json").unlink()
        found = http.get(f"{URL}/{job['id']}/spec").json()
    nothing = dict.fromkeys(("filename", "bytes", "sha256"))
    assert found["files"] == {"training_file": {"id": job["training_file"], **nothing}}
    assert found["base_model"] == {"id": "tiny", "config_sha256": None, "files": []}


def test_header_values_of_graders_are_hidden(start_service: Callable[..., Service]) -> None:
    service = start_service(grader_allow_private=True, egress_ports=(9,))
    url, headers = "http://127.0.0.1:9/grade", {"x-tenant": "only-mine"}
    grader = {"type": "endpoint", "name": "remote", "url": url, "headers": headers}
    block = {"grader": grader, "hyperparameters": {"max_steps": 2}}
    job = service.create(method={"type": "reinforcement", "reinforcement": block})
    with service.http() as http:
        text = http.get(f"{URL}/{job['id']}/spec").text
    assert "only-mine" not in text
    assert json.loads(text)["run"]["method"]["grader"]["headers"] == {"x-tenant": HIDDEN}
