"""`bgpo doctor` as a process: what it says of this machine, and of one where things are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BGPO = [sys.executable, "-m", "cli.main", "doctor"]
pytestmark = pytest.mark.timeout(300)  # it imports PyTorch in a process of its own


def doctor(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("BGPO_")}
    env |= {"BGPO_HOME": str(home), "BGPO_MIN_FREE_BYTES": "0"} | settings
    return subprocess.run([*BGPO, *arguments], env=env, capture_output=True, text=True, check=False)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_machine_that_has_everything(tmp_path: Path, redis_url: str, sqlite_url: str) -> None:
    home = tmp_path / "home"
    done = doctor(home, "--json", BGPO_REDIS_URL=redis_url, BGPO_DATABASE_URL=sqlite_url)
    found = checks(done)
    failed = [name for name, check in found.items() if check["needed"] and not check["ok"]]
    if not os.environ.get("CI"):  # a developer's machine may have no sandbox
        failed = [name for name in failed if not name.startswith("sandbox")]
    assert failed == []
    assert {"python", "torch", "redis", "database", "artifacts", "models", "disk", "sandbox"} <= set(found)
    assert found["redis"]["ok"]
    assert "answers" in found["database"]["detail"]
    assert not [path for path in home.rglob("*") if path.is_file()], "what it wrote is gone"
    assert redis_url not in done.stdout + done.stderr  # it holds a password


def test_a_machine_where_much_is_missing(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--json",
        BGPO_REDIS_URL="redis://:secret@127.0.0.1:1/0",
        BGPO_DATABASE_URL="postgresql://bgpo:secret@127.0.0.1:1/bgpo",
        BGPO_ARTIFACTS_URL="file:///proc/nowhere",
        BGPO_MODEL_ROOT=str(tmp_path / "none"),
        BGPO_MIN_FREE_BYTES=str(2**60),
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    found = checks(done)
    for name in ("redis", "database", "artifacts", "models", "disk"):
        assert not found[name]["ok"], name
        assert found[name]["detail"]
    assert not found["redis"]["needed"]  # a worker looks for jobs without it, too
    assert "secret" not in done.stdout + done.stderr


def test_without_a_sandbox_it_fails_unless_the_operator_consents(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "bwrap"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo bubblewrap 9.9 && exit\necho 'bwrap: no' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = doctor(tmp_path, PATH=path)
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("sandbox ")]
    assert "failed" in line
    assert "bwrap: no" in line
    consented = doctor(tmp_path, PATH=path, BGPO_ALLOW_UNSANDBOXED="1")
    assert consented.returncode == 0, consented.stdout
    assert "without any wall" in consented.stdout


def test_settings_that_are_not_valid_are_an_error(tmp_path: Path) -> None:
    done = doctor(tmp_path, BGPO_PORT="many")
    assert done.returncode == 1
    assert "error: the BGPO_* settings are not valid" in done.stderr
