"""Status polls (GET /v1/fine_tuning/jobs/{id}), answered again without asking the application when nothing changed.

Clients poll a job many times a second, and most polls find it as the one before did. So this layer keeps the last
answer the application gave for each job, together with the version of the job's row from before it was made. A poll
reads the row's version; if that is the version of the kept answer, its bytes are sent again. In every other case (no
permission, no such job, a changed row, a database that fails) the application answers as if this layer were not there,
and a good answer is kept. So what a client sees is always what the route in `api.routes.jobs` makes, and never older
than the row.

That holds for answers made from the job's own row alone. Whoever adds something else to the job object (other rows, the
time) must say in `_depends_on_its_row` when it is shown, or it would go stale.

Versions are read in one thread, for all polls that arrived while it was reading before in one statement: handing work
to a thread and asking a database cost more than all else here, and so the busier the API is, the less they cost a poll.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import cast

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.exchange import exchange_of
from jobs.db import Database
from jobs.ids import JOB, is_id
from jobs.repositories import polls
from jobs.repositories.polls import Version
from jobs.states import State

_PATH = "/v1/fine_tuning/jobs/"
_KEPT_ANSWERS = 2048  # of some kilobytes each
_CLOSE_S = 2.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Poll:
    """One request that waits for the version of a job."""

    job_id: str
    loop: asyncio.AbstractEventLoop
    version: asyncio.Future[Version | None]


@dataclass(frozen=True)
class Answer:
    """A 200 as the application gave it."""

    version: Version
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    async def send(self, send: Send) -> None:
        """Give it again."""
        await send({"type": "http.response.start", "status": 200, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body})


class Polls:
    """The kept answers, and the thread that reads versions. One per process; call from the event loop."""

    def __init__(self, database: Database) -> None:
        self._versions = polls.Versions(database)
        self._waiting: list[_Poll] = []
        self._reading = False
        self._batches: SimpleQueue[list[_Poll]] = SimpleQueue()
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._under_way: dict[tuple[str, Version], asyncio.Event] = {}
        self._thread = threading.Thread(target=self._read, name="polls", daemon=True)
        self._thread.start()

    async def version(self, job_id: str) -> Version | None:
        """The version of a job's row now; None when there is none or it cannot be told."""
        loop = asyncio.get_running_loop()
        poll = _Poll(job_id, loop, loop.create_future())
        self._waiting.append(poll)
        if not self._reading:
            self._read_next()
        return await poll.version

    async def answer(self, job_id: str, version: Version) -> Answer | None:
        """The kept answer if it is of this version. Waits for one that the application is about to give."""
        if (under_way := self._under_way.get((job_id, version))) is not None:
            await under_way.wait()
        answer = self._answers.get(job_id)
        if answer is None or answer.version != version:
            return None
        self._answers.move_to_end(job_id)
        return answer

    @contextmanager
    def making(self, job_id: str, version: Version) -> Iterator[None]:
        """While the block runs, others wait for its answer: else all who poll a job that changed would ask at once."""
        key, done = (job_id, version), asyncio.Event()
        self._under_way.setdefault(key, done)
        try:
            yield
        finally:
            done.set()
            if self._under_way.get(key) is done:
                del self._under_way[key]

    def keep(self, job_id: str, answer: Answer) -> None:
        """Keep an answer that was made after its version was read."""
        self._answers[job_id] = answer
        if len(self._answers) > _KEPT_ANSWERS:
            self._answers.popitem(last=False)

    def close(self) -> None:
        """End the thread; no poll may be under way. One that hangs in the database ends with the process."""
        self._batches.put([])
        self._thread.join(_CLOSE_S)

    def _read_next(self) -> None:
        self._reading = True
        self._batches.put(self._waiting)
        self._waiting = []

    def _read(self) -> None:
        """The thread."""
        while batch := self._batches.get():
            found: dict[str, Version] = {}
            try:
                found = self._versions.read({poll.job_id for poll in batch})
            except Exception:  # thread boundary: the requests of this batch wait, and so would all later ones
                _log.exception("poll.unread")
            batch[0].loop.call_soon_threadsafe(self._tell, batch, found)
        self._versions.close()

    def _tell(self, batch: list[_Poll], found: dict[str, Version]) -> None:
        for poll in batch:
            if not poll.version.done():  # a request that was given up
                poll.version.set_result(found.get(poll.job_id))
        self._reading = False
        if self._waiting:
            self._read_next()


class PollMiddleware:
    """Answers polls of jobs that did not change; everything else goes on to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job_id = _polled(scope)
        project = None if job_id is None else _project(scope)
        if job_id is None or project is None:
            await self._app(scope, receive, send)
            return
        kept: Polls = cast(FastAPI, scope["app"]).state.polls
        exchange_of(scope).route = f"{_PATH}{{job_id}}"
        version = await kept.version(job_id)
        if version is None or polls.project_of(version) != project or not _depends_on_its_row(version):
            await self._app(scope, receive, send)
        elif (answer := await kept.answer(job_id, version)) is not None:
            await answer.send(send)
        else:
            with kept.making(job_id, version):
                await _Recorder(kept, job_id, version, send).run(self._app, scope, receive)


class _Recorder:
    """Passes an answer on and keeps it when it is a 200."""

    def __init__(self, kept: Polls, job_id: str, version: Version, send: Send) -> None:
        self._kept, self._job_id, self._version, self._send = kept, job_id, version, send
        self._headers: tuple[tuple[bytes, bytes], ...] | None = None
        self._body = b""

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        await app(scope, receive, self._pass)
        # Read again: a row that changed twice meanwhile, and back, would give an answer in between the wrong version.
        if self._headers is not None and await self._kept.version(self._job_id) == self._version:
            self._kept.keep(self._job_id, Answer(self._version, self._headers, self._body))

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            self._headers = tuple(message["headers"])  # before the layers outside of this one add theirs
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
        await self._send(message)


def _polled(scope: Scope) -> str | None:
    """The id of the job this request asks for, None when it is another request."""
    if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(_PATH):
        return None
    job_id: str = scope["path"][len(_PATH) :]
    return job_id if is_id(JOB, job_id) else None


def _project(scope: Scope) -> str | None:
    """The caller's project, if the key may read jobs; if not, the application says what is wrong."""
    caller = exchange_of(scope).caller
    return caller.project_id if caller is not None and "jobs:read" in caller.scopes else None


def _depends_on_its_row(version: Version) -> bool:
    """Whether the job object shows this job's row and nothing else. A place in the queue depends on other jobs."""
    return polls.state_of(version) != State.QUEUED
