"""What the tests of attempts share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from jobs.db import Database
from jobs.repositories import attempts, events
from jobs.tables import Attempt, Event, Job
from worker.answering import run_next
from worker.context import WorkerContext

MakeJob = Callable[..., str]
GetJob = Callable[[str], Job]
SetJob = Callable[..., None]
WithTrainer = Callable[..., WorkerContext]
RecipeOf = Callable[[int], dict[str, Any]]


def wait_for(check: Callable[[], bool], what: str, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def events_of(db: Database, job_id: str) -> list[Event]:
    with db.read() as session:
        return events.since(session, job_id, 0, 1000)


def messages(db: Database, job_id: str) -> list[str]:
    return [event.message for event in events_of(db, job_id)]


def attempts_of(db: Database, job_id: str) -> list[Attempt]:
    with db.read() as session:
        return attempts.of_job(session, job_id)


class InBackground:
    """`run_next` in a thread, as Celery runs it."""

    def __init__(self, context: WorkerContext) -> None:
        self._thread = threading.Thread(target=run_next, args=(context,))
        self._thread.start()

    def wait(self, timeout: float = 60) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive()
