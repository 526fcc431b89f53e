"""An API and a worker as processes, set up by environment variables alone, with the trainer `worker/stand_in.py`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from cli.part import Part
from cli.ports import free_port

TRAINER = [sys.executable, str(Path(__file__).parent / "worker" / "stand_in.py"), "normal"]


@contextmanager
def running(home: Path, env: Mapping[str, str]) -> Iterator[httpx2.Client]:
    """A client of a service that runs until the end of the block; its one base model is called `tiny`."""
    models, port = home / "models", free_port()
    (models / "tiny").mkdir(parents=True)
    (models / "tiny" / "config.json").write_text("{}")
    settings = {
        "HOME": home,
        "PORT": port,
        "MODEL_ROOT": models,
        "TRAINER_COMMAND": json.dumps(TRAINER),
        "WORKER_GPUS": "cpu",
        "MIN_FREE_BYTES": 0,
    }
    env = {**os.environ, **{f"BGPO_{name}": str(value) for name, value in settings.items()}, **env}
    parts = [
        Part(name, [sys.executable, "-m", name], env=env, cwd=home, log_path=home / f"{name}.log")
        for name in ("api", "worker")
    ]

    def look() -> None:
        assert [part.poll() for part in parts] == [None, None], [part.log_tail() for part in parts]

    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            wait_until(lambda: is_ready(client), look)
            yield client
            look()
    finally:
        for part in parts:
            part.kill()


def is_ready(client: httpx2.Client) -> bool:
    """Whether the API serves."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(happened: Callable[[], bool], look: Callable[[], None] = lambda: None, seconds: float = 90) -> None:
    """Poll until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        look()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def wait_for_job(client: httpx2.Client, job_id: str, status: str) -> dict[str, Any]:
    """Wait until a job has a status, and return it."""
    ended = ("succeeded", "failed", "cancelled", status)
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(client.get(f"/v1/fine_tuning/jobs/{job_id}").json())
        return found["status"] in ended

    wait_until(look)
    assert found["status"] == status, found
    return found
