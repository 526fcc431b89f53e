"""What the checks of the real clients let happen on the service's side: the worker's part, and special services."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bgpo.egress import signing
from jobs import webhooks
from jobs.ids import FILE, new_id
from jobs.repositories import events, files
from jobs.repositories.jobs import Claim, JobError
from jobs.tables import DEFAULT_PROJECT
from tests.jobs.receivers import OK, Receiver, receiver, saying
from tests.service import Service


@dataclass
class Steps:
    """Each public method is a step; arguments and results are JSON."""

    service: Service
    start: Callable[..., Service]
    folder: Path
    chat: Callable[[], str]
    _claims: dict[str, Claim] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)
    _full: Service | None = None
    _hooked: tuple[Service, Receiver] | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """Stop what no step stops."""
        self._open.close()

    def claim(self, job: str) -> None:
        """A worker takes the job."""
        self._claims[job] = self.service.claim(job)

    def checkpoint(self, job: str, step: int, final: bool = False) -> str:
        """Its trainer writes a checkpoint of one file."""
        weights = self.folder / "weights"
        weights.mkdir(exist_ok=True)
        (weights / "config.json").write_text("{}")
        return self.service.checkpoint(self._claims[job], step, weights, final=final)

    def event(self, job: str, message: str, level: Any = "info", data: Any = None) -> None:
        """Its trainer says something."""
        with self.service.ctx.db.transaction() as session:
            assert events.append(session, job, self._claims[job].epoch, level, message, data=data)

    def finish(self, job: str, state: str, code: str = "", message: str = "") -> None:
        """The worker ends the run."""
        self.service.finish(self._claims.pop(job), state, JobError(code, message) if code else None)

    def many_files(self, count: int) -> None:
        """Rows of files that nobody downloads."""
        with self.service.ctx.db.transaction() as session:
            for number in range(count):
                made = new_id(FILE)
                files.insert(
                    session, DEFAULT_PROJECT, id=made, filename=f"{number}.txt", purpose="user_data", bytes=1,
                    sha256="0" * 64, key=f"files/{made}", summary=None,
                )  # fmt: skip

    def full_queue(self) -> dict[str, str]:
        """Another service, whose queue is full: its URL, a file there, and a cancelled job."""
        full = self._full = self._full or self.start(max_queued_jobs=1, home=self.folder / "full")
        file = full.upload(full.rows()).json()["id"]
        with full.http() as http:
            for job in http.get("/v1/fine_tuning/jobs").json()["data"]:
                http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            cancelled = full.create(training_file=file)["id"]
            http.post(f"/v1/fine_tuning/jobs/{cancelled}/cancel")
        full.create(training_file=file)
        return {"url": full.url, "file": file, "cancelled": cancelled}

    def busy_graders(self) -> None:
        """Every place for a grader's trial is taken."""
        self._end.clear()
        for _ in range(self.service.ctx.settings.grader_runs):
            with pytest.raises(TimeoutError):
                self.service.ctx.grader_slots.run(self._end.wait, within_s=0)

    def free_graders(self) -> None:
        """They are free again."""
        self._end.set()

    def generator(self) -> str:
        """The URL of another service, which has a generator."""
        return self.chat()

    def project(self) -> str:
        """Another project, made by the administrator."""
        with self.service.http() as http:
            made = http.post("/v1/organization/projects", json={"name": "other"})
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    def receiver(self) -> dict[str, str]:
        """A receiver of webhooks on loopback, and another service, which may send there."""
        if self._hooked is None:
            server = self._open.enter_context(receiver(saying(OK)))
            self._hooked = self.start(webhook_allow_private=True, home=self.folder / "hooked"), server
        service, server = self._hooked
        return {"service": service.url, "url": f"http://127.0.0.1:{server.port}/"}

    def received(self) -> dict[str, Any]:
        """What the receiver got last."""
        assert self._hooked is not None
        request = self._hooked[1].requests[-1]
        return {"body": request.body.decode(), "headers": request.headers}

    def webhook(self, type: str, job: str) -> dict[str, Any]:
        """A webhook as it is delivered now, and the secret it is signed with."""
        secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
        body = webhooks.body("evt_1", type, time.time(), job)
        headers = signing.headers("evt_1", time.time(), body, signing.keys(secret))
        return {"body": body.decode(), "headers": headers, "secret": secret}
