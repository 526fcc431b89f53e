"""A machine whose wall does not hold: graders that run programs are refused, unless the operator consents."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from migrations import upgrade
from tests.running import running

CODE = {"type": "code", "name": "c", "tests": "assert f() == 1"}
ROW = json.dumps({"messages": [{"role": "user", "content": "2 + 2"}]}).encode() + b"\n"


@pytest.fixture
def env(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """Of a machine whose first bwrap on the PATH does not start."""
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'no permissions' >&2\nexit 1\n")
    broken.chmod(0o755)
    database_url = f"sqlite:///{tmp_path / 'bgpo.db'}"
    upgrade(database_url)
    path = f"{broken.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "BGPO_DATABASE_URL": database_url, "BGPO_REDIS_URL": redis_url}


def job_body(client: Any) -> dict[str, Any]:
    uploaded = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", ROW * 12)}).json()
    method = {"type": "reinforcement", "reinforcement": {"grader": CODE, "hyperparameters": {"max_steps": 2}}}
    return {"model": "tiny", "training_file": uploaded["id"], "method": method}


def test_without_consent(env: dict[str, str], tmp_path: Path) -> None:
    with running(tmp_path / "home", env | {"BGPO_ALLOW_UNSANDBOXED": "0"}) as client:
        refused = client.post("/v1/fine_tuning/jobs", json=job_body(client))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "invalid_grader"), error
        assert error["param"] == "method.reinforcement.grader.type"
        assert "BGPO_ALLOW_UNSANDBOXED" in error["message"]
        for name in ("run", "validate"):
            body = {"grader": CODE} | ({"model_sample": ""} if name == "run" else {})
            refused = client.post(f"/v1/fine_tuning/graders/{name}", json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, "grader.type")
            assert error["code"] == "unsupported_grader"


def test_with_consent(env: dict[str, str], tmp_path: Path) -> None:
    with running(tmp_path / "home", env | {"BGPO_ALLOW_UNSANDBOXED": "1"}) as client:
        assert client.post("/v1/fine_tuning/jobs", json=job_body(client)).status_code == 200
        graded = client.post("/v1/fine_tuning/graders/run", json={"grader": CODE, "model_sample": "def f(): return 1"})
        assert graded.json()["reward"] == 1.0, graded.text
