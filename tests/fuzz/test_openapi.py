"""schemathesis: requests made from the OpenAPI description, right and wrong ones, against a real server process.

It must answer each with a status, headers and a body that the description has for it, and never with 500. Links carry
ids from one operation to the next, so that sequences are tried as well: create, read, cancel, delete, read again.

Streams are left out: they do not end. The description of graders refers to itself, which makes systematic coverage of
it endless, so those operations get random requests only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from cli.part import Part
from cli.ports import free_port
from jobs.context import Context
from jobs.settings import Settings
from migrations import upgrade
from tests.running import is_ready, wait_until
from tests.service import Service

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,use_after_free"
)
NO_GENERATOR = """
[[operations]]
include-path = "/v1/chat/completions"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
"""
"""Here none runs, which the service is to say; with one: tests/api/test_chat.py."""
STREAMS, GRADED = "/stream$", "/stream$|graders|fine_tuning/jobs$|/estimate$|/clone$"


@dataclass(frozen=True)
class Api:
    """`python -m api`."""

    url: str
    settings: Settings


@pytest.fixture
def api(tmp_path: Path, redis_url: str) -> Iterator[Api]:
    """A server, which must not have met anything it did not plan for."""
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    (tmp_path / "schemathesis.toml").write_text(NO_GENERATOR)
    upgrade(f"sqlite:///{tmp_path / 'bgpo.db'}")
    port, log = free_port(), tmp_path / "api.log"
    settings = {"HOME": tmp_path, "PORT": port, "MODEL_ROOT": tmp_path / "models", "REDIS_URL": redis_url}
    settings |= {"LOG_FORMAT": "json", "MAX_QUEUED_JOBS": 100_000}
    env = {**os.environ, **{f"BGPO_{name}": str(value) for name, value in settings.items()}}
    part = Part("api", [sys.executable, "-m", "api"], env=env, cwd=tmp_path, log_path=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            wait_until(lambda: is_ready(client), lambda: None if part.poll() is None else pytest.fail(log.read_text()))
            yield Api(str(client.base_url), Settings(home=tmp_path, model_root=tmp_path / "models"))
            assert is_ready(client)
        assert "Traceback" not in log.read_text()
    finally:
        part.kill()


def fuzz(api: Api, folder: Path, phase: str, *options: str, without: str = STREAMS) -> int:
    """Run a phase; the number of requests it made."""
    command = [str(Path(sys.executable).with_name("st")), "run", f"{api.url}/openapi.json", "--no-color"]
    command += [f"--phases={phase}", f"--checks={CHECKS}", f"--exclude-path-regex={without}", "--warnings=off"]
    command += ["--generation-deterministic", "--request-timeout=30", "--no-shrink"]
    command += ["--suppress-health-check=all", "--continue-on-failure", *options]
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    print(ran.stdout[-6000:])
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5_000:]
    found = re.search(r"(\d+) generated", ran.stdout)
    assert found is not None, ran.stdout
    return int(found[1])


def test_files_and_queue(api: Api, tmp_path: Path) -> None:
    """A part small enough for every run."""
    made = fuzz(api, tmp_path, "coverage", "--include-tag=Files", "--include-tag=Queue", "--include-tag=Usage")
    assert made > 100


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_everything(api: Api, tmp_path: Path) -> None:
    """At least 2,000 requests."""
    made = [
        fuzz(api, tmp_path, "examples"),
        fuzz(api, tmp_path, "coverage", without=rf"{GRADED}|\{{"),  # those with ids: below, with ids of objects
        fuzz(api, tmp_path, "fuzzing", "--max-examples=10"),
        fuzz(api, tmp_path, "stateful", "--max-examples=20"),
    ]
    assert sum(made) >= 2000, made


@pytest.mark.fuzz
@pytest.mark.timeout(900)
def test_objects_that_exist(api: Api, tmp_path: Path) -> None:
    """Random ids find nothing: here the paths lead to a job, a file, a checkpoint and all the others."""
    ids = "\n".join(f'"path.{name}" = "{value}"' for name, value in objects(api, tmp_path).items())
    (tmp_path / "schemathesis.toml").write_text(f"[parameters]\n{ids}\n{NO_GENERATOR}")
    paths = "--include-path-regex=\\{"
    assert fuzz(api, tmp_path, "coverage", paths, without=GRADED) > 500
    assert fuzz(api, tmp_path, "fuzzing", paths, "--max-examples=8") > 200


def objects(api: Api, folder: Path) -> dict[str, str]:
    """One of each, by the name of its path parameter."""
    ctx = Context.open(api.settings)
    service = Service(api.url, ctx, None)  # type: ignore[arg-type]  # the server is another process
    file_id = service.upload(service.rows()).json()["id"]
    job_id = service.create(training_file=file_id)["id"]
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    checkpoint_id = service.checkpoint(service.claim(job_id), 2, folder / "checkpoint")
    ctx.close()
    upload = {"bytes": 1, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
    hook = {"name": "h", "url": "https://receiver.example/hook", "event_types": ["fine_tuning.job.failed"]}
    grader = service.body()["method"]["reinforcement"]["grader"]
    with service.http() as http:

        def made(path: str, **body: object) -> dict[str, str]:
            response = http.post(f"/v1/{path}", json=body)
            assert response.status_code == 200, response.text
            answer: dict[str, str] = response.json()
            return answer

        project_id = made("organization/projects", name="p")["id"]
        return {
            "file_id": file_id,
            "upload_id": made("uploads", **upload)["id"],
            "job_id": job_id,
            "checkpoint_id": checkpoint_id,
            "path": "model.safetensors",
            "model": "tiny",
            "name": made("fine_tuning/secrets", name="s", value="v")["name"],
            "grader_id": made("fine_tuning/graders", name="g", grader=grader)["id"],
            "evaluation_id": made(f"fine_tuning/checkpoints/{checkpoint_id}/evaluate", file=file_id)["id"],
            "export_id": made(f"fine_tuning/checkpoints/{checkpoint_id}/export")["id"],
            "webhook_endpoint_id": made("webhook_endpoints", **hook)["id"],
            "project_id": project_id,
            "key_id": made(f"organization/projects/{project_id}/api_keys", name="k", scopes=["all"])["id"],
        }
