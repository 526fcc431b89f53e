"""A running API for tests: a real server on a real port, and what a worker would do to its jobs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from api.main import create_app
from api.server import Server
from jobs.context import Context
from jobs.repositories import checkpoints, jobs
from jobs.repositories.jobs import Claim, JobError
from jobs.services.dataset import OUTPUTS
from jobs.settings import Settings
from migrations import upgrade

# The default renderer draws tracebacks with all local variables, which takes seconds.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
)


@dataclass
class Service:
    """A running API on a real port, the context behind it, and what a worker would do."""

    url: str
    ctx: Context
    server: Server

    def http(self, **options: Any) -> httpx2.Client:
        """A client that trusts no environment and does not retry."""
        return httpx2.Client(base_url=self.url, trust_env=False, timeout=30, **options)

    def rows(self, count: int = 12, *, answered: bool = False) -> bytes:
        """A dataset."""
        answer = [{"role": "assistant", "content": "4"}] if answered else []
        row = {"messages": [{"role": "user", "content": "2 + 2"}, *answer], "answer": "4"}
        return b"".join(json.dumps(row | {"i": i}).encode() + b"\n" for i in range(count))

    def preferences(self, count: int = 12) -> bytes:
        """A dataset of preferences."""
        answers = {name: [{"role": "assistant", "content": text}] for name, text in zip(OUTPUTS, "45", strict=True)}
        row = {"input": {"messages": [{"role": "user", "content": "2 + 2"}]}, **answers, "answer": "4"}
        return b"".join(json.dumps(row | {"i": i}).encode() + b"\n" for i in range(count))

    def upload(self, content: bytes, purpose: str = "fine-tune", name: str = "train.jsonl") -> httpx2.Response:
        """Upload over HTTP."""
        with self.http() as http:
            return http.post("/v1/files", data={"purpose": purpose}, files={"file": (name, content)})

    def body(self, **changes: Any) -> dict[str, Any]:
        """A create request that is right, but for the changes."""
        grader = {"type": "string_check", "name": "same", "operation": "eq"}
        grader |= {"input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}
        block = {"grader": grader, "hyperparameters": {"max_steps": 20}}
        method = {"type": "reinforcement", "reinforcement": block}
        return {"model": "tiny", "method": method, "training_file": ""} | changes

    def create(self, **changes: Any) -> dict[str, Any]:
        """A job made over HTTP."""
        if "training_file" not in changes:
            changes["training_file"] = self.upload(self.rows()).json()["id"]
        with self.http() as http:
            response = http.post("/v1/fine_tuning/jobs", json=self.body(**changes))
        assert response.status_code == 200, response.text
        made: dict[str, Any] = response.json()
        return made

    def claim(self, job_id: str) -> Claim:
        """Take a job as a worker does."""
        with self.ctx.db.transaction() as session:
            claim = jobs.claim(session, job_id, "worker-1", 60)
        assert claim is not None
        return claim

    def checkpoint(self, claim: Claim, step: int, folder: Path, *, final: bool = False) -> str:
        """Publish a folder as a checkpoint."""
        key = f"checkpoints/{claim.job_id}/{claim.epoch}/step-{step:06d}"
        manifest = self.ctx.store.publish_directory(folder, key)
        with self.ctx.db.transaction() as session:
            made = checkpoints.insert(
                session, claim.job_id, claim.epoch, step, key, manifest, final, {"sampled_reward_mean": 0.5}
            )
        assert made is not None
        return made

    def finish(self, claim: Claim, state: str, error: JobError | None = None) -> None:
        """End the run."""
        with self.ctx.db.transaction() as session:
            assert jobs.finish(session, claim.job_id, claim.epoch, state, error=error)


@contextmanager
def services(folder: Path) -> Iterator[Callable[..., Service]]:
    """Starts APIs in threads: SQLite, local artifacts, no broker, one base model `tiny`, unless told otherwise."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(**values: Any) -> Service:
        models = folder / "models"
        (models / "tiny").mkdir(parents=True, exist_ok=True)
        (models / "tiny" / "config.json").write_text("{}")
        given = {"home": folder / "home", "port": 0, "model_root": models, "redis_url": "redis://127.0.0.1:1/0"}
        settings = Settings(**(given | values))
        upgrade(settings.database_url)
        app = create_app(settings)
        server = Server(settings, app)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Service(f"http://127.0.0.1:{port}", app.state.context, server)

    yield start
    for server, thread in running:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts APIs for one test."""
    with services(tmp_path) as start:
        yield start


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """An API with the defaults."""
    return start_service()
