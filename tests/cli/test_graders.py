"""`bgpo grader` and `bgpo secret` against a running service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.services.grading import vault
from jobs.tables import Secret
from jobs.vault import Sealed
from tests.service import service, start_service

__all__ = ["service", "start_service"]
SAME = {
    "type": "string_check", "name": "same", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip


def bgpo(service: Any, *arguments: Any, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *map(str, arguments), "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
    assert done.returncode == status, done
    return done


@pytest.fixture
def grader(tmp_path: Path) -> Path:
    path = tmp_path / "g.json"
    path.write_text(json.dumps(SAME))
    return path


def test_grader(service: Any, grader: Path, tmp_path: Path) -> None:
    assert json.loads(bgpo(service, "grader", "validate", "--grader", grader).stdout) == SAME
    (tmp_path / "item.json").write_text('{"answer": "4"}')
    (tmp_path / "answer.txt").write_text("4")
    for sample, reward in (("4", 1.0), ("5", 0.0), (f"@{tmp_path / 'answer.txt'}", 1.0)):
        arguments = ("grader", "run", "--grader", grader, "--sample", sample, "--item", tmp_path / "item.json")
        assert json.loads(bgpo(service, *arguments).stdout)["reward"] == reward
    failed = bgpo(service, "grader", "run", "--grader", grader, "--sample", "4", status=1)
    assert "same failed: invalid_variable_error" in failed.stderr
    assert json.loads(failed.stdout)["metadata"]["errors"]["invalid_variable_error"]
    grader.write_text(json.dumps(SAME | {"operation": "neq"}))
    assert "grader.operation" in bgpo(service, "grader", "validate", "--grader", grader, status=1).stderr
    assert "cannot read" in bgpo(service, "grader", "run", "--grader", grader, "--sample", "@nothing", status=1).stderr


def test_secret(service: Any) -> None:
    value = "sk-0123456789"
    done = bgpo(service, "secret", "set", "TOKEN", stdin=f"{value}\n")
    assert done.stdout == "set TOKEN\n"
    assert bgpo(service, "secret", "list").stdout.splitlines()[1].startswith("TOKEN ")
    with service.ctx.db.read() as session:
        (row,) = session.scalars(sa.select(Secret))
        assert vault(service.ctx.settings).open("proj_default", "TOKEN", Sealed(row.ciphertext, row.key_id)) == value
    refused = bgpo(service, "secret", "set", "TOKEN", value, stdin="", status=2)  # a value is no argument
    assert "unexpected extra argument" in refused.stderr
    assert bgpo(service, "secret", "delete", "TOKEN").stdout == "deleted TOKEN\n"
    assert "No such secret" in bgpo(service, "secret", "delete", "TOKEN", status=1).stderr
