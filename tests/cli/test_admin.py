"""`bgpo admin` against a running API: projects, keys, limits, the audit log, and the first key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.tables import DEFAULT_PROJECT
from migrations import upgrade
from tests.api.tenants import Tenants, make_tenants, tenants
from tests.service import start_service

__all__ = ["make_tenants", "start_service", "tenants"]


def bgpo(tenants: Tenants, *arguments: str, status: int = 0) -> str:
    environment = os.environ | {"BGPO_ADMIN_KEY": tenants.admin_key, "BGPO_URL": tenants.service.url}
    command = [sys.executable, "-m", "cli.main", "admin", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done
    return done.stderr if status else done.stdout


def rows(text: str) -> list[list[str]]:
    """Without the headings."""
    return [line.split() for line in text.splitlines()[1:]]


def test_projects(tenants: Tenants) -> None:
    project = bgpo(tenants, "project", "create", "mine").strip()
    assert [row[:2] for row in rows(bgpo(tenants, "project", "list"))] == [
        [project, "mine"],
        [DEFAULT_PROJECT, "Default"],
    ]
    assert bgpo(tenants, "project", "archive", project) == f"{project} archived\n"
    assert [row[0] for row in rows(bgpo(tenants, "project", "list"))] == [DEFAULT_PROJECT]
    assert rows(bgpo(tenants, "project", "list", "--archived"))[0][-1] == "archived"
    assert "No such project" in bgpo(tenants, "project", "archive", "proj_none", status=1)


def test_keys(tenants: Tenants) -> None:
    project = bgpo(tenants, "project", "create", "mine").strip()
    of = ("--project", project)
    made = bgpo(tenants, "key", "create", "laptop", *of, "--scope", "jobs:write", "--scope", "files:read")
    with tenants.http(made.strip()) as http:
        assert http.get("/v1/fine_tuning/jobs").status_code == 200
        assert http.get("/v1/models").status_code == 403
    key_id = rows(bgpo(tenants, "key", "list", *of))[0][0]
    assert made not in bgpo(tenants, "key", "list", *of)
    new = bgpo(tenants, "key", "rotate", key_id, *of, "--overlap", "60").strip()
    for key in (made.strip(), new):
        with tenants.http(key) as http:
            assert http.get("/v1/files").status_code == 200
    assert bgpo(tenants, "key", "revoke", key_id, *of) == f"{key_id} revoked\n"
    with tenants.http(made.strip()) as http:
        assert http.get("/v1/files").status_code == 401
    second = Tenants(tenants.service, bgpo(tenants, "key", "create", "second").strip())
    assert {row[1] for row in rows(bgpo(second, "key", "list"))} == {"root", "second"}
    assert "no scopes" in bgpo(tenants, "key", "create", "third", "--scope", "all", status=2)


def test_limits_and_audit(tenants: Tenants) -> None:
    project = bgpo(tenants, "project", "create", "mine").strip()
    bgpo(tenants, "limits", project, "--set", "files=3", "--set", "queued_jobs=7")
    found = {row[0]: row[1:] for row in rows(bgpo(tenants, "limits", project, "--set", "files="))}
    assert found["files"] == ["-", "-"]
    assert found["queued_jobs"] == ["7", "7"]
    assert "NAME=NUMBER" in bgpo(tenants, "limits", project, "--set", "files", status=1)
    assert "unknown_parameter" in bgpo(tenants, "limits", project, "--set", "file=1", status=1)
    newest = rows(bgpo(tenants, "audit", "-n", "3", "--event", "project_limits.updated"))
    assert [row[2] for row in newest] == ["project_limits.updated"] * 3
    assert '"type": "project.created"' in bgpo(tenants, "audit", "--json")


def test_a_wrong_key_is_said_in_a_line(tenants: Tenants) -> None:
    assert "Incorrect API key" in bgpo(Tenants(tenants.service, "wrong"), "project", "list", status=1)


@pytest.mark.parametrize("migrated", [True, False])
def test_the_first_key(tmp_path: Path, migrated: bool) -> None:
    if migrated:
        upgrade(f"sqlite:///{tmp_path / 'bgpo.db'}")
    environment = {"PATH": os.environ["PATH"], "BGPO_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "cli.main", "admin", "bootstrap", "--name", "mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if migrated:
        assert (done.returncode, done.stdout[:11]) == (0, "bgpo_admin_"), done
    else:
        assert done.returncode == 1
        assert "python -m migrations" in done.stderr
