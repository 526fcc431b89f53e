"""What a newcomer does: clone, `make demo`, and again. The clone holds only what is committed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
# Make variables of the run around this one would reach the inner make.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "BGPO_"))}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clone") / "bgpo"
    subprocess.run(["git", "clone", "--quiet", f"file://{ROOT}", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)  # with its .venv more than a gigabyte, and pytest keeps folders of three runs


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """The ports one would choose are taken, by us or by somebody else."""
    with contextlib.ExitStack() as stack:
        for port in (6379, 8000):
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


def path_without_redis(folder: Path) -> str:
    """A folder with every program of PATH but the Redis servers."""
    folder.mkdir()
    for directory in map(Path, os.environ["PATH"].split(os.pathsep)):
        for program in directory.iterdir() if directory.is_dir() else ():
            link = folder / program.name
            if program.name not in ("redis-server", "valkey-server") and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


def make_demo(clone: Path, **environment: str) -> tuple[str, dict[str, Any]]:
    """Output and summary of `make demo`."""
    result = subprocess.run(
        ["make", "demo"],
        cwd=clone,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    summary: dict[str, Any] = json.loads((clone / ".demo" / "summary.json").read_text())
    return result.stdout, summary


def processes_of(folder: Path) -> list[str]:
    """Command lines that name something below `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if f"{folder}/" in command:
            found.append(command)
    return found


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_make_demo_works_in_a_fresh_clone_and_again(clone: Path, taken_ports: None, tmp_path: Path) -> None:
    for path in (os.environ["PATH"], path_without_redis(tmp_path / "bin")):
        output, summary = make_demo(clone, PATH=path)
        assert summary["tuned_solved"] - summary["base_solved"] >= 0.15
        assert summary["solved_gain_interval_95"][0] > 0
        assert summary["redownloaded_solved"] == summary["tuned_solved"]
        assert summary["redownloaded_cell_accuracy"] == summary["tuned_cell_accuracy"]
        assert summary["held_out_puzzles"] >= 500
        assert f"{summary['tuned_solved']:.1%}" in output
        assert Path(summary["checkpoint"]).is_dir()
        assert processes_of(clone) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_second_setup_is_instant(clone: Path) -> None:
    subprocess.run(["make", "setup"], cwd=clone, env=ENVIRONMENT, check=True)
    begin = time.monotonic()
    subprocess.run(["make", "setup"], cwd=clone, env=ENVIRONMENT, check=True)
    assert time.monotonic() - begin < 5
