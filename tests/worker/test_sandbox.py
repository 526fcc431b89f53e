"""What a worker finds out about its sandbox at its start, in a process of its own: a process finds its wall once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bgpo.sandbox import SandboxError
from bgpo.sandbox.wall import proven_bubblewrap

CHECK = "from worker.sandbox import SandboxCheck; c = SandboxCheck(); c.start(); c.join(); print('problem', c.problem)"


def check(**environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "BGPO_ALLOW_UNSANDBOXED"} | environment
    return subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True, check=True).stdout


def no_bubblewrap(folder: Path) -> str:
    """A PATH whose bwrap always fails."""
    program = folder / "bwrap"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 9.9 && exit\nexit 1\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_wall_that_holds_is_logged() -> None:
    try:
        name = proven_bubblewrap().name
    except SandboxError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no wall here: {error}")
    said = check()
    assert "sandbox holds" in said
    assert name in said
    assert "problem None" in said


def test_no_wall_is_a_warning_with_its_reason(tmp_path: Path) -> None:
    said = check(PATH=no_bubblewrap(tmp_path))
    assert "no sandbox: jobs with a python or code grader fail here" in said
    assert "problem no sandbox could be started" in said


def test_consent_is_a_warning(tmp_path: Path) -> None:
    said = check(PATH=no_bubblewrap(tmp_path), BGPO_ALLOW_UNSANDBOXED="1")
    assert "programs of graders run without a wall" in said
    assert "problem None" in said
