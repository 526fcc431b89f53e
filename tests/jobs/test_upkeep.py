"""Expired files: gone when nobody needs them, however closely a job comes in between. On both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.ids import FILE, new_id
from jobs.repositories import files
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, File, Job

MakeJob = Callable[..., str]


@pytest.fixture
def make_file(db: Database) -> Callable[..., str]:
    """Stores the row of a file whose time ends so many seconds from now; its id."""

    def make(expires_s: float | None = None) -> str:
        file_id = new_id(FILE)
        values: dict[str, Any] = {"id": file_id, "filename": "x", "purpose": "fine-tune", "bytes": 1, "sha256": "0"}
        with db.transaction() as session:
            files.insert(session, DEFAULT_PROJECT, key=f"files/{file_id}", **values)
            if expires_s is not None:
                session.execute(sa.update(File).where(File.id == file_id).values(expires_at=now() + expires_s))
        return file_id

    return make


def take(db: Database) -> set[str]:
    with db.transaction() as session:
        return {key.removeprefix("files/") for key in files.take_expired(session)}


def test_what_is_over_and_unused_is_taken(
    db: Database, make_file: Callable[..., str], make_job: MakeJob, set_job: Callable[..., None]
) -> None:
    endless, later, over, training, validation, old = (make_file(each) for each in (None, 60, -1, -1, -1, -1))
    job = make_job(training_file=training, validation_file=validation)
    make_job(training_file=old, state=State.FAILED)
    with db.read() as session:
        shown = {file.id for file in files.page(session, DEFAULT_PROJECT, after=None, limit=10)}
    assert shown == {endless, later, training, validation}
    assert take(db) == {over, old}
    set_job(job, state=State.CANCELLED)
    assert take(db) == {training, validation}
    assert take(db) == set()


def test_a_job_that_is_being_made_keeps_its_file(
    db: Database, make_file: Callable[..., str], make_job: MakeJob, get_job: Callable[[str], Job]
) -> None:
    """Its transaction has looked at the file while that was there, and commits after the time is over."""
    file_id, other = make_file(60), make_job()
    taken: list[set[str]] = []
    sweeper = threading.Thread(target=lambda: taken.append(take(db)))
    with db.transaction() as session:
        assert files.get(session, DEFAULT_PROJECT, file_id, lock="share") is not None
        if db.engine.dialect.name == "sqlite":  # there the other transactions wait for this one
            session.execute(sa.update(File).where(File.id == file_id).values(expires_at=now() - 1))
            sweeper.start()
        session.execute(sa.update(Job).where(Job.id == other).values(training_file=file_id))
    if db.engine.dialect.name == "postgresql":
        with db.transaction() as session:
            session.execute(sa.update(File).where(File.id == file_id).values(expires_at=now() - 1))
        sweeper.start()
    sweeper.join(30)
    assert taken == [set()]
    with db.read() as session:
        assert files.get(session, DEFAULT_PROJECT, file_id) is not None
