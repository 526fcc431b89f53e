"""The whole service as separate processes, in both shapes: embedded (SQLite, a Redis of its own) and with servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from cli.part import Part
from cli.ports import free_port
from cli.stack import Stack

# One thread each: bit-identical results, and no contention on small machines.
SETTINGS = {"BGPO_TRAINER_THREADS": "1", "BGPO_TRAINER_DEVICE": "cpu", "BGPO_STOP_GRACE_S": "20"}


@dataclass
class Running:
    """A service that runs."""

    url: str
    home: Path

    def trainer(self, job_id: str) -> psutil.Process | None:
        """The process that trains this job now."""
        folder = self.home / "work" / job_id
        for process in psutil.process_iter():
            try:
                if "bgpo.run" in process.cmdline() and Path(process.cwd()).is_relative_to(folder):
                    return process
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        return None


def _embedded(home: Path, env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Running]:
    with Stack(home, port=free_port(), env=env) as stack:
        yield Running(stack.url, home)
        stack.check()


def _with_servers(home: Path, env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Running]:
    new_database: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    port = free_port()
    env = {
        **os.environ,
        **env,
        "BGPO_HOME": str(home),
        "BGPO_DATABASE_URL": new_database(),
        "BGPO_REDIS_URL": request.getfixturevalue("redis_url"),
        "BGPO_PORT": str(port),
    }
    parts = [
        Part(name, [sys.executable, "-m", name], env=env, cwd=home, log_path=home / f"{name}.log")
        for name in ("api", "worker", "worker.generator")
    ]
    try:
        wait_ready(f"http://127.0.0.1:{port}", parts)
        yield Running(f"http://127.0.0.1:{port}", home)
        assert not any(part.poll() is not None for part in parts), [part.log_tail() for part in parts]
    finally:
        for part in parts:
            part.kill()


def wait_ready(url: str, parts: list[Part]) -> None:
    deadline = time.monotonic() + 60
    while True:
        for part in parts:
            assert part.poll() is None, part.log_tail()
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < deadline, [part.log_tail() for part in parts]
        time.sleep(0.1)


@pytest.fixture(scope="module", params=["embedded", "servers"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_root: Path
) -> Iterator[Running]:
    """A running service of each shape, shared by a module's tests: starting one takes seconds."""
    env = SETTINGS | {"BGPO_MODEL_ROOT": str(model_root)}
    start = _embedded if request.param == "embedded" else _with_servers
    yield from start(tmp_path_factory.mktemp("home"), env, request)


@pytest.fixture(scope="session")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and held-out Sudoku puzzles, from the project's own generator."""
    folder = tmp_path_factory.mktemp("puzzles")
    paths = folder / "train.jsonl", folder / "held_out.jsonl"
    for path, split, rows in zip(paths, ("train", "test"), ("64", "24"), strict=True):
        command = [sys.executable, "-m", "bgpo.tasks", "sudoku", "--split", split, "--rows", rows, "--out", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return paths


@pytest.fixture
def job_body() -> Callable[..., dict[str, Any]]:
    """The body of a create request for a job that takes seconds."""

    def body(training_file: str, validation_file: str, *, steps: int = 6, every: int = 2) -> dict[str, Any]:
        return {
            "model": "tiny",
            "training_file": training_file,
            "validation_file": validation_file,
            "seed": 5,
            "method": {
                "type": "reinforcement",
                "reinforcement": {
                    "grader": {"type": "sudoku", "name": "sudoku"},
                    "hyperparameters": {
                        "max_steps": steps,
                        "batch_size": 4,
                        "group_size": 4,
                        "mc_samples": 2,
                        "learning_rate": 1e-3,
                        "max_completion_length": 17,
                        "block_length": 17,
                        "diffusion_steps": 9,
                        "eval_interval": every,
                    },
                },
            },
            "rl": {"checkpointing": {"every_steps": every}},
        }

    return body
