"""An API in a thread and a real generator process beside it, for tests of chat completions.

Starting a generator's serving process takes seconds (it loads PyTorch), so tests share them where they can.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from api.main import create_app
from api.server import Server
from cli.part import Part
from jobs.context import Context
from jobs.ids import JOB, new_id
from jobs.repositories import checkpoints, generators, job_rows, jobs
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Job
from tests.running import wait_until

HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class Chat:
    """A running API and what is needed beside it."""

    url: str
    ctx: Context
    server: Server
    generator: Part | None = None

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"{self.url}/v1", trust_env=False, timeout=60)

    def ask(self, **changes: Any) -> httpx2.Response:
        """POST /v1/chat/completions."""
        with self.http() as http:
            return http.post("/chat/completions", json=body(**changes))

    def start_generator(self, **settings: Any) -> None:
        """Start the process, and wait until it is seen."""
        given = {
            name: getattr(self.ctx.settings, name) for name in ("home", "database_url", "artifacts_url", "model_root")
        }
        given |= {"redis_url": self.ctx.settings.redis_url.get_secret_value(), "generator_threads": 1, **settings}
        env = {**os.environ, **{f"BGPO_{name.upper()}": str(value) for name, value in given.items()}}
        home = self.ctx.settings.home
        command = [sys.executable, "-m", "worker.generator"]
        self.generator = Part("generator", command, env=env, cwd=home, log_path=home / "generator.log")
        wait_until(self.has_generator, self._look)

    def has_generator(self) -> bool:
        with self.ctx.db.read() as session:
            return generators.any_live(session)

    def _look(self) -> None:
        assert self.generator is not None
        assert self.generator.poll() is None, self.generator.log_tail()

    def serving(self) -> psutil.Process | None:
        """The process that has the models."""
        assert self.generator is not None
        for child in psutil.Process(self.generator.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # ended while we looked
                command = child.cmdline()
                if "bgpo.serve" in command and "-I" not in command:  # the wardens above it have -I
                    return child
        return None

    def checkpoint(
        self, folder: Path, step: int = 5, *, final: bool = True, state: str = "succeeded"
    ) -> tuple[str, str]:
        """A job that has ended with this folder as its checkpoint: (name of its model, id of the checkpoint)."""
        job_id = new_id(JOB)
        name = f"ft:tiny:{DEFAULT_PROJECT}::{job_id[-12:]}"
        fields: dict[str, Any] = {
            "id": job_id,
            "project_id": DEFAULT_PROJECT,
            "request_hash": "0",
            "model": "tiny",
            "training_file": "file-train",
            "seed": 1,
            "method": {"type": "reinforcement"},
            "recipe": {"seed": 1, "evaluation": {}, "checkpointing": {}, "sample_log": 0},
            "tuned_model": name,
            "total_steps": step,
            "state": State.QUEUED,
            "desired": "run",
            "attempts_left": 3,
            "max_attempts": 3,
        }
        with self.ctx.db.transaction() as session:
            job_rows.insert(session, Job(**fields))
            claim = jobs.claim(session, job_id, "worker-1", 60)
        assert claim is not None
        key = f"checkpoints/{job_id}/{claim.epoch}/step-{step:06d}"
        manifest = self.ctx.store.publish_directory(folder, key)
        with self.ctx.db.transaction() as session:
            made = checkpoints.insert(session, job_id, claim.epoch, step, key, manifest, final, {})
            assert made is not None
            if state == "succeeded":
                assert jobs.finish(session, job_id, claim.epoch, state)
        return name, made


def body(**changes: Any) -> dict[str, Any]:
    """A request that is right, but for the changes."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 16, "diffusion": {"block_length": 4}}
    return {name: value for name, value in (asked | changes).items() if value is not None}


def chunks_of(text: str) -> list[Any]:
    """The events of a stream, parsed; the last one is "[DONE]" when it is complete."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in found]


@contextmanager
def chatting(home: Path, database_url: str, redis_url: str, model_root: Path, **values: Any) -> Iterator[Chat]:
    """A service over a migrated database; its generators end with the block."""
    given = {"home": home, "port": 0, "database_url": database_url, "redis_url": redis_url, "model_root": model_root}
    settings = Settings(**(given | values))
    app = create_app(settings)
    server = Server(settings, app)
    thread = threading.Thread(target=server.run)
    thread.start()
    chat: Chat | None = None
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        chat = Chat(f"http://127.0.0.1:{port}", app.state.context, server)
        yield chat
    finally:
        if chat is not None and chat.generator is not None:
            chat.generator.kill()
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def copied(template: Path, folder: Path) -> str:
    """A migrated SQLite database of its own."""
    shutil.copyfile(template, folder / "bgpo.db")
    return f"sqlite:///{folder / 'bgpo.db'}"
